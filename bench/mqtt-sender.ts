// The telco of bench/mqtt.ts: a process of its own that publishes measurements at an even rate.
// Enters: a task by IPC. Leaves: how many were sent. A measurement's `seq` is the moment it was sent, in µs: that is how the lag is measured.
import { connectMqtt } from '../gateway/control/mqtt/client.ts'
import { topicsOf } from '../gateway/control/mqtt/topics.ts'
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
/** Not yet written to the socket: a sender that is ahead of its broker waits. */
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
