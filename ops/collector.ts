// How V8 collects garbage in an agent, which moves gigabytes through small buffers. Enters: nothing. Leaves: flags set for the whole process, its threads too.
// V8 takes every few tens of MB of new buffers for a reason to mark the whole heap, some 25 MB that stay: 41 times in a migration of 110 MB, each time beside the
// work, with helpers on the cores where the guest runs. In one go it takes some 20 ms and needs no helper. (Counting buffers into the heap's own limit,
// --external-memory-accounted-in-global-limit, would do with still fewer: but then an agent grew by 450 MiB while 2 GiB moved.)
import { setFlagsFromString } from 'node:v8'

/** For a process whose heap stays small: marking stops it for that long. */
export function markInOneGo(): void {
  setFlagsFromString('--no-incremental-marking')
  setFlagsFromString('--no-concurrent-marking')
}
