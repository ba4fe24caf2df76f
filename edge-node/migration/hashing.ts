// Reading a VM's files to name their content takes from nothing to hours; so does waiting for images that come first.
// Enters: the reading, with its progress. Leaves: signs of life to the other side, progress to the operator. Always
// holds: who waits for the other side's reading waits as long as signs of it come, and no longer than HASHING_MAX_MS in
// all.
import type { MigrationProgress, Plan, Side } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { HashOptions, HashProgress } from '../disks/digests.ts'
import { HELD_BYTES_MAX, type HeldPart } from '../disks/held.ts'
import type { Message, MessageOf } from './messages.ts'
import type { Peer } from './peer.ts'

/** No offer, no answer, and no sign of life for so long: the other side is gone. */
const SILENCE_MS = 60_000
const HASHING_MAX_MS = 12 * 3_600_000
/** A reading that ends within this is not worth a word. */
const QUIET_MS = 1_000
const SAY_MS = 2_000
const PROGRESS_MS = 500

type HashingOptions = {
  plan: Plan
  side: Side
  /** The other side; undefined while there is no channel to it. */
  peer: () => Peer | undefined
  onProgress: (progress: MigrationProgress) => void
  signal: AbortSignal
}

/** Runs `read` and says how far it is: to the operator twice a second, to the other side every two seconds. */
export async function whileHashing<T>(
  { plan, side, peer, onProgress, signal }: HashingOptions,
  read: (options: HashOptions) => Promise<T>,
): Promise<T> {
  const startMs = performance.now()
  let last: HashProgress = { file: '', bytesDone: 0, bytesTotal: 0 }
  const say = () =>
    void peer()
      ?.send({ type: 'HASHING', ...last })
      .catch(() => {})
  const show = () =>
    onProgress({ migrationId: plan.migrationId, side, phase: last.phase ?? 'hashing', ...figures(last, performance.now() - startMs) })
  let ticks = 0
  const timer = setInterval(() => {
    const elapsedMs = performance.now() - startMs
    if (elapsedMs < QUIET_MS) return
    show()
    if (ticks++ % (SAY_MS / PROGRESS_MS) === 0) say()
  }, PROGRESS_MS)
  try {
    return await read({
      signal,
      onProgress: progress => {
        last = progress
      },
    })
  } finally {
    clearInterval(timer)
  }
}

/** Notes how far the reading is in what is told of it, for the watchdog (watchdog.ts). */
export const whileHashed =
  (life: { hashedBytes?: number }, onProgress: (progress: MigrationProgress) => void) =>
  (progress: MigrationProgress): void => {
    if (progress.phase === 'hashing' || progress.phase === 'images') life.hashedBytes = progress.bytesSent ?? 0
    onProgress(progress)
  }

/** Pure. `elapsedMs`: since the reading began. */
function figures({ bytesDone, bytesTotal }: HashProgress, elapsedMs: number) {
  const rateBytesPerSecond = Math.round((bytesDone * 1000) / Math.max(1, elapsedMs))
  const etaMs = bytesDone === 0 ? null : Math.round(((bytesTotal - bytesDone) * elapsedMs) / bytesDone)
  return { bytesTotal, bytesSent: bytesDone, rateBytesPerSecond, etaMs }
}

type AfterHashingOptions = {
  silenceMs?: number | undefined
  /** The other side waits for these images. */
  onImages?: ((names: string[]) => void) | undefined
}

/**
 * The other side's OFFER or ACCEPT, for which it may have to read files first, and which COPY may precede.
 * MIGRATION_TIMEOUT, LIMIT_EXCEEDED.
 */
export async function expectAfterHashing<T extends 'OFFER' | 'ACCEPT'>(
  peer: Peer,
  type: T,
  what: string,
  { silenceMs = SILENCE_MS, onImages }: AfterHashingOptions = {},
): Promise<{ message: MessageOf<T>; copies: HeldPart[] }> {
  const copies: HeldPart[] = []
  let copyBytes = 0
  const endMs = performance.now() + HASHING_MAX_MS
  for (;;) {
    const others: Message['type'][] = onImages ? ['HASHING', 'COPY', 'IMAGES'] : ['HASHING']
    const message: Message = await peer.expect<Message['type']>([type, ...others], { ms: silenceMs, what })
    if (message.type === type) return { message: message as MessageOf<T>, copies }
    if (message.type === 'IMAGES') onImages?.(message.names)
    if (message.type === 'COPY') {
      copyBytes += message.body.length
      if (copyBytes > HELD_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', 'the target describes more of its disks than fits')
      copies.push(message)
    }
    if (performance.now() > endMs)
      throw new GodwitError('MIGRATION_TIMEOUT', `the other site has hashed files for more than ${HASHING_MAX_MS / 3_600_000} hours`)
  }
}
