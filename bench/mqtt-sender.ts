// The telco process of bench/mqtt.ts, which publishes measurements at a constant rate. Enters: a task by IPC. Leaves:
// the number of sent measurements. The `seq` of a measurement is its time of sending in µs, which gives the lag.
import { connectMqtt } from '../mqtt/client.ts'
import { topicsOf } from '../mqtt/topics.ts'
import { silentLog } from '../wire/log.ts'

export type SenderTask = {
  url: string
  tenant: string
  username?: string
  password?: string
  perSecond: number
  seconds: number
  users: number
}
export type SenderAnswer = { kind: 'ready' } | { kind: 'done'; sent: number }

const TICK_MS = 10
/** Limit of bytes that are not written to the socket yet: a sender faster than its broker waits. */
const AHEAD_MAX = 500

export const nowMicros = (): number => Math.round((performance.timeOrigin + performance.now()) * 1000)

async function send({ url, tenant, username, password, perSecond, seconds, users }: SenderTask): Promise<number> {
  const topics = topicsOf(tenant)
  const link = connectMqtt({
    target: { url, username, password, version: 'auto' },
    clientId: 'bench-telco',
    subscriptions: [],
    onMessage() {},
    firstOrNever: true,
    log: silentLog,
  })
  await link.whenUp({ timeoutMs: 10_000 })
  answer({ kind: 'ready' })
  const startMs = performance.now()
  const total = perSecond * seconds
  let sent = 0
  let ahead = 0
  await new Promise<void>(resolve => {
    const timer = setInterval(() => {
      const due = Math.min(total, Math.floor(((performance.now() - startMs) * perSecond) / 1000))
      for (; sent < due && ahead < AHEAD_MAX; sent++) {
        const payload = { seq: nowMicros(), vmId: `vm-${sent % users}`, targetSite: 'a', rttMs: 10 + (sent % 7), jitterMs: 1, lossRatio: 0 }
        const topic = topics.build('latency', { ueKey: `ue${sent % users}` })
        ahead += 1
        const message = { topic, payload: JSON.stringify(payload), qos: 0 as const, retained: false, expirySeconds: 10 }
        link
          .publish(message)
          .catch(() => {})
          .finally(() => {
            ahead -= 1
          })
      }
      if (sent < total) return
      clearInterval(timer)
      resolve()
    }, TICK_MS)
  })
  await link.close()
  return sent
}

function answer(message: SenderAnswer): void {
  process.send?.(message)
}

if (process.send) {
  process.once('message', (task: SenderTask) => {
    send(task).then(
      sent => {
        answer({ kind: 'done', sent })
        process.disconnect?.()
      },
      error => {
        console.error(error)
        process.exit(1)
      },
    )
  })
}
