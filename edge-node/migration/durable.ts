// A record that decides who runs a VM, and a disk that refuses it. After a refused fsync nobody knows what the disk
// holds: LevelDB says that the record may show up when the store is opened anew. So nothing is said or done that only
// the record, or only its absence, would allow.
// Enters: the write. Leaves: when it is durable; or the last refusal, after which the next start of the agent reads
// what is so, and goes on from there.
import { sleep } from '../../ops/deadline.ts'
import { hasCode } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'

const TRIES = 10
const RETRY_MS = 1_000

/** Tries again, for a while, what the disk refuses (STORE_FAILED); any other error is thrown at once. */
export async function durably<T>(write: () => Promise<T>, log: Log, stop?: AbortSignal): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await write()
    } catch (error) {
      log.error('writing a decisive ownership record failed', { tries, error: error as Error })
      if (!hasCode(error, 'STORE_FAILED') || tries === TRIES) throw error
      await sleep(RETRY_MS, stop)
    }
  }
}
