// A simulated telco at a real broker, in real time: the users of a scenario move, and the command publishes what a
// telco would measure (docs/reference/mqtt.md). Enters: a scenario, a broker. Leaves: messages, until the hours are
// over or the caller stops. User n has the VM vm-n; its site comes from the placement at the broker. Always holds:
// without the broker only measurements are lost.

import { type CommandKey, datedMeasurement, signMeasurement } from '../crypto/command-keys.ts'
import { type BrokerTarget, connectMqtt, type IncomingMessage, type MqttLink } from '../mqtt/client.ts'
import { type Topics, topicsOf } from '../mqtt/topics.ts'
import { sleep } from '../ops/deadline.ts'
import type { Scenario } from '../sim-network/mobility/scenario.ts'
import { Telco, type TelcoMessage } from '../sim-network/mobility/telco.ts'
import type { DriveTrace } from '../sim-network/mobility/trace.ts'
import { World } from '../sim-network/mobility/world.ts'
import { GodwitError, hasCode } from '../wire/errors.ts'
import { silentLog } from '../wire/log.ts'

/** Each user publishes about five messages a second. */
const USERS_MAX = 1000
const CONNECT_MS = 10_000
const LINKS_EVERY_MS = 30_000

export type PublishOptions = {
  scenario: Scenario
  traces: readonly DriveTrace[]
  played: readonly DriveTrace[]
  hours: number
  target: BrokerTarget
  tenant: string
  /** Signs the measurements. */
  key?: CommandKey | undefined
  signal: AbortSignal
}

/** Returns the number of published messages. LIMIT_EXCEEDED for too many users; AUTH_FAILED, BROKER_UNREACHABLE. */
export async function publishScenario({ scenario, traces, played, hours, target, tenant, key, signal }: PublishOptions): Promise<number> {
  const topics = topicsOf(tenant)
  const world = new World(scenario, traces, played)
  if (world.users.count > USERS_MAX)
    throw new GodwitError(
      'LIMIT_EXCEEDED',
      `the scenario has ${world.users.count} users; at most ${USERS_MAX} can be published in real time`,
    )
  const sites = new Map(world.map.sites.map(({ name }, at) => [name, at]))
  const places = new Map<string, number>()
  const link = await connected(target, signal, topics, (vm, siteId) => places.set(vm, sites.get(siteId) ?? -1))
  let sent = 0
  const say = ({ topic: below, retained, payload }: TelcoMessage) => {
    const topic = `${topics.root}/${below}`
    const value = key ? signMeasurement(key, topic, payload, Date.now()) : datedMeasurement(payload, Date.now())
    const message = { topic, payload: JSON.stringify(value), qos: 0 as const, retained }
    link.publish(message).then(
      () => sent++,
      () => {},
    )
  }
  const userOf = (user: number) => {
    const vmId = `vm-${user + 1}`
    const place = places.get(vmId) ?? -1
    return { ueKey: `sim-${user + 1}`, vmId, vmSite: place < 0 ? world.site[user]! : place }
  }
  try {
    const startedAtMs = Date.now()
    const telco = new Telco(world, userOf, startedAtMs)
    for (let linksMs = 0; world.nowMs < hours * 3_600_000 && !signal.aborted; ) {
      world.step()
      for (const message of telco.users()) say(message)
      if (world.nowMs >= linksMs) {
        for (const message of telco.links()) say(message)
        linksMs += LINKS_EVERY_MS
      }
      await sleep(Math.max(0, startedAtMs + world.nowMs - Date.now()), signal).catch(() => {})
    }
  } finally {
    await link.close()
  }
  return sent
}

/** Reads the placements of VMs if the broker allows it; otherwise users measure the latency to the nearest sites. */
async function connected(
  target: BrokerTarget,
  signal: AbortSignal,
  topics: Topics,
  onPlace: (vm: string, siteId: string) => void,
): Promise<MqttLink> {
  const onMessage = ({ topic, payload }: IncomingMessage) => {
    const vm = topics.parse(topic)?.parameters.vmId
    if (vm && payload.length > 0) onPlace(vm, JSON.parse(Buffer.from(payload).toString()).siteId)
  }
  const open = async (subscriptions: { topic: string; qos: 0 | 1 }[]) => {
    const link = connectMqtt({
      target,
      clientId: `godwit-sim-${process.pid}`,
      subscriptions,
      onMessage,
      firstOrNever: true,
      log: silentLog,
    })
    try {
      await link.whenUp({ timeoutMs: CONNECT_MS, signal })
      return link
    } catch (error) {
      await link.close()
      throw error
    }
  }
  return await open([{ topic: topics.filter('placement'), qos: 1 }]).catch(error => {
    if (hasCode(error, 'AUTH_FAILED')) return open([])
    throw error
  })
}
