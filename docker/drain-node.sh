#!/bin/bash
# preStop of a Ray worker pod: move its replicas away, and let them finish what they draw.
#
# Ray marks the node as draining: Serve starts replacements on other nodes, sends nothing new here,
# and stops the replicas here once their jobs are done. Kubernetes kills the pod after
# terminationGracePeriodSeconds whatever happens here.
#
#   DRAIN_DEADLINE_S  what Ray is told the node has left; the longest job and Serve's margin
#   DRAIN_PROC        where this pod's processes are; /proc, but for tests
set -u
deadline_s=${DRAIN_DEADLINE_S:-340}
processes=${DRAIN_PROC:-/proc}

# Without a head nobody would move the replicas: then there is nothing to wait for.
timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message 'the pod is being deleted' \
  --deadline-remaining-seconds "$deadline_s" || exit 0

end=$((SECONDS + deadline_s))
while ((SECONDS < end)) && grep -qas '^ray::ServeReplica' "$processes"/[0-9]*/cmdline; do
  sleep 1
done
exit 0
