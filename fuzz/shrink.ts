// Makes a failing input smaller and simpler while it still fails in the same way. Enters: the input, a judge. Leaves:
// the smallest input found within the budget. Always holds: the result fails.
import { concatBytes } from '../crypto/bytes.ts'

type ShrinkOptions = { runsMax?: number }

export async function shrink(
  input: Uint8Array,
  failsAlike: (input: Uint8Array) => Promise<boolean>,
  { runsMax = 4000 }: ShrinkOptions = {},
): Promise<Uint8Array> {
  let best = input
  let runs = 0
  const better = async (candidate: Uint8Array): Promise<boolean> => {
    if (runs++ >= runsMax || !(await failsAlike(candidate))) return false
    best = candidate
    return true
  }
  for (let size = Math.ceil(best.length / 2); size >= 1 && runs < runsMax; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < best.length && runs < runsMax; ) {
      const without = concatBytes(best.subarray(0, at), best.subarray(at + size))
      if (!(await better(without))) at += size
    }
  }
  for (let at = 0; at < best.length && runs < runsMax; at++) {
    if (best[at] === 0) continue
    const plain = best.slice()
    plain[at] = 0
    await better(plain)
  }
  return best
}
