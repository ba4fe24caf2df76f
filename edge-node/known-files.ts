// Whether a target has most likely read a VM's files before, so that its answer to an offer comes at once. Enters:
// migrations that went well. Leaves: a guess, which costs time where it is wrong and nothing else. Pure, in memory.
import type { FileFacts } from './vm/spec.ts'

export type KnownFiles = {
  has(target: string, files: Record<string, FileFacts>): boolean
  add(target: string, files: Record<string, FileFacts>): void
}

/** So much is read within the round trip that waiting for the answer would cost. */
const QUICK_BYTES = 64 * 1024 * 1024
const KNOWN_MAX = 1024

export function createKnownFiles(): KnownFiles {
  const known = new Set<string>()
  const keyOf = (target: string, files: Record<string, FileFacts>) =>
    [target, ...Object.entries(files).map(([name, { root }]) => `${name}=${root}`)].join(' ')
  return {
    has(target, files) {
      const read = Object.values(files).filter(({ root }) => root !== undefined)
      return read.reduce((sum, { bytes }) => sum + bytes, 0) <= QUICK_BYTES || known.has(keyOf(target, files))
    },
    add(target, files) {
      const key = keyOf(target, files)
      known.delete(key)
      known.add(key)
      for (const oldest of known) if (known.size > KNOWN_MAX) known.delete(oldest)
    },
  }
}
