// After a commit: the target is asked until it answers. Enters: hand-overs without an answer, of this life of the agent
// and of earlier ones.
// Leaves: entries for their slots (slots.ts), which ask; how often that was in vain.
// Always holds: a hand-over without an answer is never given up: what ends in doubt begins anew from the records, until
// the target answers or the root fences it (doubts.ts); it can only go forward, or be refused by the target.
import { sleep } from '../ops/deadline.ts'
import type { Plan } from '../wire/control.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { AskProgress } from './doubts.ts'
import { recoverVm, type Unanswered } from './migration/recover.ts'
import { type RunOptions, resultOf } from './runs.ts'
import type { SlotEntry, Slots } from './slots.ts'

/** Between a hand-over that ended in doubt and its next beginning. */
const CLEAR_UP_MS = 5_000

export type Asking = {
  /** Asks the target of this hand-over, in the slot of its VM. */
  take(hanging: Unanswered): Promise<void>
  /** Begins a hand-over that ended in doubt anew: the records hold its state, as after a restart. */
  clearUp(plan: Plan): Promise<void>
}

export function createAsking(options: RunOptions, slots: Slots): Asking {
  const { identity, link, stop, log } = options
  const take = (hanging: Unanswered) => slots.take(hanging.plan, 'source', async () => askAgain(options, hanging))
  return {
    take,
    async clearUp({ vm }) {
      while (!stop.aborted) {
        try {
          await sleep(CLEAR_UP_MS, stop)
          const hanging = await recoverVm({ ...options, keys: identity.keys, certificate: identity.certificate }, vm)
          for (const one of hanging) await take(one)
          return link().announce()
        } catch (error) {
          if (!stop.aborted) log.warn('VM in doubt could not be resolved yet', { vm, error })
        }
      }
    },
  }
}

function askAgain(options: RunOptions, hanging: Unanswered): SlotEntry {
  const { link, stop, log } = options
  const { plan } = hanging
  const { migrationId, vm, target } = plan
  const asked = createAsked()
  const abandoned = new AbortController()
  const ask = async () => {
    const openStream = (index: number, attempt: number) => link().openRelayStream({ sessionId: migrationId, index, attempt })
    const fate = await hanging.ask(openStream, AbortSignal.any([stop, abandoned.signal]), asked.unanswered)
    if (fate === 'kept') throw new GodwitError('MIGRATION_REFUSED', 'the target returned the VM')
    return undefined
  }
  log.warn('target has not confirmed the hand-over; asking it', { migrationId, vm, target })
  const answer = ask().catch(error => {
    const { code, message } = toGodwitError(error)
    throw code === 'MIGRATION_REFUSED'
      ? error
      : new GodwitError('MIGRATION_DOUBT', `handed over to ${target}, which has not answered: ${message}`, { cause: error })
  })
  const abandon = (reason = new GodwitError('MIGRATION_DOUBT', 'an operator ended the retries')) => abandoned.abort(reason)
  return {
    side: 'source',
    cancel() {
      throw new GodwitError('MIGRATION_LATE')
    },
    isAsking: () => true,
    asked: asked.facts,
    abandon,
    stage: () => ({ state: 'ASKING', mark: String(asked.facts()?.times ?? 0) }),
    stuck(error) {
      // It ends in doubt, and begins anew from the records (clearUp).
      abandon(error)
      return 'forward'
    },
    result: resultOf(options, plan, 'source', answer),
  }
}

/** Counts the meetings without an answer. */
export function createAsked(): { unanswered(error: GodwitError): void; facts(): AskProgress | undefined } {
  let asked: AskProgress | undefined
  return {
    unanswered(error) {
      const now = Date.now()
      asked = { times: (asked?.times ?? 0) + 1, firstAt: asked?.firstAt ?? now, lastAt: now, said: error.toJSON() }
    },
    facts: () => asked,
  }
}
