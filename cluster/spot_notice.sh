#!/bin/bash
# Tell Ray that this spot node is about to be taken away, so that the Fit in hand saves itself and nothing new starts here.
# aws.yaml and gcp.yaml start it beside Ray on every worker: spot_notice.sh HEAD:PORT. AWS gives 2 minutes' notice, GCP 30 s.
set -uo pipefail
address=${1:?usage: spot_notice.sh HEAD:PORT}
aws=${AWS_METADATA:-http://169.254.169.254}
gcp=${GCP_METADATA:-http://metadata.google.internal}
get() { curl --silent --fail --max-time 2 "$@"; }

noticed() {
  local token
  if token=$(get -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$aws/latest/api/token"); then
    seconds=110
    get -H "X-aws-ec2-metadata-token: $token" "$aws/latest/meta-data/spot/instance-action" >/dev/null
  else
    seconds=25
    [ "$(get -H 'Metadata-Flavor: Google' "$gcp/computeMetadata/v1/instance/preempted")" = TRUE ]
  fi
}

until noticed; do sleep "${EVERY_S:-5}"; done
exec ray drain-node --address "$address" --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message 'the cloud takes this spot node away' --deadline-remaining-seconds "$seconds"
