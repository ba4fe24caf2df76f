// The telco of the demo: publishes over MQTT what a phone and the sites' probes measure, and receives the phases of
// handoffs. Enters: a broker, the figures of the model. Leaves: messages of docs/reference/mqtt.md. Always holds:
// without the broker only measurements are lost.
import { connectMqtt } from '../../mqtt/client.ts'
import { type Topics, topicsOf } from '../../mqtt/topics.ts'
import type { GeoPoint } from '../../planning/geo.ts'
import { silentLog } from '../../wire/log.ts'

const TENANT = 'main'
const CONNECT_MS = 10_000
const UE_KEY = 'demo-user'

export type HandoffWord =
  | { kind: 'status'; phase: string; from: string; to: string }
  | {
      kind: 'progress'
      round?: number
      bytesSent?: number
      bytesTotalEst?: number
      throughputBps?: number
      dirtyBps?: number
      etaMs: number | null
    }

export type DemoTelco = {
  latency(site: string, rttMs: number): void
  location(place: GeoPoint): void
  link(from: string, to: string, rttMs: number): void
  close(): Promise<void>
}

type TelcoOptions = { url: string; user: string; password: string; vm: string; onHandoff(word: HandoffWord): void }

export async function connectTelco({ url, user, password, vm, onHandoff }: TelcoOptions): Promise<DemoTelco> {
  const topics = topicsOf(TENANT)
  const link = connectMqtt({
    target: { url, username: user, password, version: 'auto' },
    clientId: 'demo-telco',
    subscriptions: (['status', 'progress'] as const).map(kind => ({ topic: topics.filter(kind), qos: 1 })),
    onMessage: ({ topic, payload, retained }) => {
      const word = retained ? undefined : wordOf(topics, topic, payload)
      if (word) onHandoff(word)
    },
    log: silentLog,
  })
  await link.whenUp({ timeoutMs: CONNECT_MS }).catch(async error => {
    await link.close()
    throw error
  })
  let seq = 0
  const say = (topic: string, value: object, isRetained = false) =>
    void link.publish({ topic, payload: JSON.stringify(value), qos: 0, retained: isRetained }).catch(() => {})
  return {
    latency: (targetSite, rttMs) => say(topics.build('latency', { ueKey: UE_KEY }), { seq: ++seq, vmId: vm, targetSite, rttMs }),
    location: ({ lat, lon }) => say(topics.build('location', { ueKey: UE_KEY }), { seq: ++seq, lat, lon, accuracyM: 5 }),
    link: (siteId, peerId, rttMs) =>
      say(topics.build('siteLink', { siteId, peerId }), { rttMs, sampledAt: new Date().toISOString() }, true),
    close: () => link.close(),
  }
}

function wordOf(topics: Topics, topic: string, payload: Uint8Array): HandoffWord | undefined {
  const kind = topics.parse(topic)?.kind
  if ((kind !== 'status' && kind !== 'progress') || payload.length === 0) return undefined
  return { ...JSON.parse(Buffer.from(payload).toString('utf8')), kind } as HandoffWord
}
