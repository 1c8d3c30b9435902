"""How the shipped weights and data were made. Nothing here takes part in a study.

`chess_positions.py` composes chess positions, `chess_ladder.py` pretrains the chess family on them and writes the chess
tasks, and `sentiment.py` makes the sentiment tasks. `english_text.py` and `english_ladder.py` make a family and tasks of real
English; it takes hours, and its result doesn't ship yet. Each of these docstrings gives its command. `checkpoint.py` lets an
interrupted pretraining go on. The chess recipes need `pip install 'w2s_ray[recipes]'`.
"""
