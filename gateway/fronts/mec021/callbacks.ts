// Notifications on their way: HTTP POSTs to subscribers. Enters: deliveries. Leaves: requests, in order for each
// subscription.
// Always holds: a subscriber that is slow or gone costs a bounded queue and a few attempts, and holds up nobody else;
// redirects are not followed (they would lead past the list of allowed hosts); nothing waits for a subscriber.
import { sleep } from '../../../ops/deadline.ts'
import type { Log } from '../../../wire/log.ts'
import type { Notification } from './mec021.ts'

const QUEUE_MAX = 100
const ATTEMPTS = 3
const ANSWER_MS = 5_000
const AGAIN_MS = 500

type Callbacks = { deliver(delivery: Notification): void; close(): Promise<void> }
type CallbacksOptions = { onOutcome(outcome: 'delivered' | 'failed' | 'dropped'): void; log: Log }

export function createCallbacks({ onOutcome, log }: CallbacksOptions): Callbacks {
  const queues = new Map<string, Notification[]>()
  const over = new AbortController()
  const working = new Set<Promise<void>>()

  async function post({ url, body }: Notification): Promise<void> {
    const signal = AbortSignal.any([over.signal, AbortSignal.timeout(ANSWER_MS)])
    const headers = { 'content-type': 'application/json' }
    const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(body), redirect: 'error', signal })
    await response.body?.cancel()
    if (!response.ok) throw new Error(`status ${response.status}`)
  }

  async function attempt(delivery: Notification): Promise<void> {
    for (let at = 1; ; at++) {
      try {
        await post(delivery)
        return onOutcome('delivered')
      } catch (error) {
        if (at === ATTEMPTS || over.signal.aborted) {
          log.warn('MEC 021 notification not delivered', { url: delivery.url, error })
          return onOutcome('failed')
        }
        await sleep(AGAIN_MS * at, over.signal).catch(() => {})
      }
    }
  }

  async function work(id: string, queue: Notification[]): Promise<void> {
    for (let delivery = queue.shift(); delivery && !over.signal.aborted; delivery = queue.shift()) await attempt(delivery)
    queues.delete(id)
  }

  return {
    deliver(delivery) {
      const { subscriptionId: id } = delivery
      const queue = queues.get(id)
      if (queue && queue.length >= QUEUE_MAX) return onOutcome('dropped')
      if (queue) return void queue.push(delivery)
      const fresh = [delivery]
      queues.set(id, fresh)
      const working1 = work(id, fresh).finally(() => working.delete(working1))
      working.add(working1)
    },
    async close() {
      over.abort(new Error('the gateway is shutting down'))
      await Promise.all(working)
    },
  }
}
