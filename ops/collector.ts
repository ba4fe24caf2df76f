// Tunes V8's garbage collection for an agent, which moves gigabytes through small buffers. Enters: nothing. Leaves:
// flags for the whole process and its threads. After every few tens of MB of new buffers V8 marks the whole heap, about
// 25 MB that stay: 41 times in a migration of 110 MB, each time concurrently, with helper threads on the cores of the
// guest. One non-concurrent mark takes about 20 ms and needs no helper. (Counting buffers into the heap's own limit,
// --external-memory-accounted-in-global-limit, would need even fewer marks, but then an agent grew by 450 MiB while 2
// GiB moved.)
import { setFlagsFromString } from 'node:v8'

/** For a process with a small heap, because marking pauses the process. */
export function markInOneGo(): void {
  setFlagsFromString('--no-incremental-marking')
  setFlagsFromString('--no-concurrent-marking')
}
