// How V8 collects garbage in a process that moves gigabytes through small buffers. Enters: who runs. Leaves: flags set for the whole process, its threads too.
// V8 takes every few tens of MB of new buffers for a reason to mark the whole heap, which is some 25 MB and stays so: 41 times in a migration of 110 MB, with
// helpers on other cores, where the guest runs. Counted into the heap's own limit they are freed by the cheap collections of young objects nearly always.
import { setFlagsFromString } from 'node:v8'

/** The first Node whose V8 is known to have these flags; an older one would print that it has not. */
const NODE_MAJOR_MIN = 26

/** `isSmall`: the heap stays so small that marking it in one go (some 20 ms, now and then) costs less than doing it beside the work. */
export function tuneCollector({ isSmall }: { isSmall: boolean }): void {
  if (Number(process.versions.node.split('.')[0]) < NODE_MAJOR_MIN) return
  setFlagsFromString('--external-memory-accounted-in-global-limit')
  if (!isSmall) return
  setFlagsFromString('--no-incremental-marking')
  setFlagsFromString('--no-concurrent-marking')
}
