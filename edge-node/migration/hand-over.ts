// After the commit point: GRANT until the target answers. The source has written RELINQUISHED, so it only asks; it
// never decides again.
// Enters: the peer at hand, a way to meet the target anew. Leaves: RUNNING or REFUSE, or the last error when patience
// ends (the VM stays paused).
// Always holds: each meeting is a new handshake with a new attempt number; GRANT is idempotent at the target.
import { sleep, within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { Plan } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { CONTROL, indexOf } from '../../wire/roles.ts'
import { type ChannelOptions, openChannel } from '../channel/channel.ts'
import type { MessageOf } from './messages.ts'
import { createPeer, type Peer } from './peer.ts'

type HandOverOptions = Omit<ChannelOptions, 'stream' | 'side'> & {
  plan: Plan
  openStream: (index: number, attempt: number) => Promise<Stream>
  /** Ends the asking (the agent shuts down). */
  stop?: AbortSignal | undefined
  /** Told of each meeting without an answer. */
  onUnanswered?: ((error: GodwitError) => void) | undefined
  /** How long to go on asking, ms. */
  patienceMs?: number | undefined
  log: Log
}

type Answer = { answer: MessageOf<'RUNNING' | 'REFUSE'>; peer: Peer; attempts: number }

const RUNNING_TIMEOUT_MS = 15_000
const PATIENCE_MS = 10 * 60_000
const MEETING_MS = 30_000
const RETRY_FIRST_MS = 200
const RETRY_MAX_MS = 5_000

/** Sends the grant over `first` (if there is one), and over new meetings for as long as it is not answered. */
export async function handOver(options: HandOverOptions, first: Peer | undefined, grant: MessageOf<'GRANT'>): Promise<Answer> {
  const { plan, log, stop, patienceMs = PATIENCE_MS } = options
  const endMs = performance.now() + patienceMs
  let retryMs = RETRY_FIRST_MS
  for (let attempt = plan.attempt, peer: Peer | undefined = first; ; attempt++) {
    try {
      peer ??= await meetInTime(options, attempt)
      // Listening first: an answer that comes at once must not count as a breach.
      const answered = peer.expect(['RUNNING', 'REFUSE'], { ms: RUNNING_TIMEOUT_MS, what: `RUNNING from ${plan.target}` })
      answered.catch(() => {})
      await within(peer.send(grant), { ms: RUNNING_TIMEOUT_MS, what: `GRANT to ${plan.target}`, signal: stop })
      const answer = await within(answered, { ms: 2 * RUNNING_TIMEOUT_MS, what: `RUNNING from ${plan.target}`, signal: stop })
      return { answer, peer, attempts: attempt - plan.attempt + 1 }
    } catch (thrown) {
      const error = toGodwitError(thrown)
      options.onUnanswered?.(error)
      if (stop?.aborted || performance.now() + retryMs > endMs) throw error
      log.warn('target has not confirmed the hand-over; retrying', { migrationId: plan.migrationId, attempt, error })
    }
    peer = undefined
    await sleep(retryMs, stop)
    retryMs = Math.min(RETRY_MAX_MS, 2 * retryMs)
  }
}

/** One that comes too late is ended. */
async function meetInTime(options: HandOverOptions, attempt: number): Promise<Peer> {
  const meeting = meet(options, attempt)
  try {
    return await within(meeting, { ms: MEETING_MS, what: `a meeting with ${options.plan.target}`, signal: options.stop })
  } catch (error) {
    meeting.then(late => late.finish()).catch(() => {})
    throw error
  }
}

/** A new control stream with a new handshake: nothing of an earlier attempt counts on it. */
async function meet(options: HandOverOptions, attempt: number): Promise<Peer> {
  const stream = await options.openStream(indexOf(CONTROL), attempt)
  const channel = await openChannel({ ...options, side: 'source', stream, plan: { ...options.plan, attempt } })
  const over = new AbortController()
  return createPeer({
    channel,
    signal: over.signal,
    fail: error => {
      over.abort(error)
      channel.reset(error.code)
    },
  })
}

/** The REFUSE of a target that has nothing of the VM. */
export const refusal = (error: GodwitError = new GodwitError('VM_UNKNOWN', 'the target has no state of this VM')): MessageOf<'REFUSE'> => ({
  type: 'REFUSE',
  error: error.toJSON(),
})

/** Throws MIGRATION_STATE or EPOCH_STALE for a grant that is not the one for this plan and content. */
export function checkGrant(plan: Plan, manifestHash: string | undefined, grant: MessageOf<'GRANT'>): void {
  const isOurs = grant.vm === plan.vm && grant.migrationId === plan.migrationId && grant.manifestHash === manifestHash
  if (!isOurs) throw new GodwitError('MIGRATION_STATE', 'GRANT is for another VM, migration or content')
  if (grant.epoch !== plan.epoch + 1) throw new GodwitError('EPOCH_STALE', `GRANT for epoch ${grant.epoch}, expected ${plan.epoch + 1}`)
}
