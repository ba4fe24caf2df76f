// The MQTT side of a gateway as a whole: the embedded broker, if there is one, and the plane. Everything that was a
// file has been read.

import { publicKeyOf } from '../../../crypto/command-keys.ts'
import type { BrokerTarget, IncomingMessage, MqttLinkOptions } from '../../../mqtt/client.ts'
import { type Action, type MeasuredKind, topicsOf } from '../../../mqtt/topics.ts'
import type { Metrics } from '../../../ops/metrics.ts'
import { withoutCredentials } from '../../../ops/redact.ts'
import type { Log } from '../../../wire/log.ts'
import type { FrontHost } from '../../handoff/host.ts'
import type { Measurement } from '../../handoff/measurements.ts'
import { type Broker, type BrokerUser, OWN_ID, startBroker } from './broker.ts'
import type { SitePlace } from './facts.ts'
import { createPlaneMetrics, Plane } from './plane.ts'

export type MqttOptions = {
  tenant: string
  broker:
    | {
        mode: 'embedded'
        listen: { host: string; port: number }
        tls?: { certificate: string; key: string } | undefined
        users: BrokerUser[]
      }
    | { mode: 'external'; target: BrokerTarget; clientId?: string | undefined; workers?: number }
  commandKeys: { name: string; publicKey: string; actions: readonly Action[] }[]
  /** Who may sign measurements, and of which kinds. */
  measurementKeys?: readonly { name: string; publicKey: string; kinds: readonly MeasuredKind[] }[]
  /** external: measurements without a signature count as well, also for the policy. */
  trustBroker?: boolean
  places?: Record<string, SitePlace> | undefined
  /** Tests only. */
  backoff?: MqttLinkOptions['backoff']
}

export type RunningMqtt = {
  /** Where the broker is. */
  readonly url: string
  /** Whether it is connected now. */
  readonly up: boolean
  close(): Promise<void>
}

/** QoS 1 commands wait at an external MQTT broker while the gateway is away; what is late by then says so. */
const SESSION_SECONDS = 60

const UNSIGNED_HINT =
  'with an external broker the policy uses only measurements signed by a key of mqtt.measurementKeys; mqtt.trustBroker: true accepts all'

type StartMqttOptions = {
  options: MqttOptions
  host: FrontHost
  metrics: Metrics
  onMeasurement?: ((measurement: Measurement) => void) | undefined
  /** Measurements may move VMs. */
  hasPolicy?: boolean
  log: Log
}

/**
 * CONFIG_INVALID for keys, names and addresses that cannot be. An external broker that is away is waited for in the
 * background.
 */
export async function startMqtt({ options, host, metrics, onMeasurement, hasPolicy = false, log }: StartMqttOptions): Promise<RunningMqtt> {
  const topics = topicsOf(options.tenant)
  const counters = createPlaneMetrics(metrics)
  const keys = options.commandKeys.map(({ name, publicKey, actions }) => ({ name, key: publicKeyOf(publicKey), actions }))
  const { measurementKeys: signers = [], trustBroker = false } = options
  const measurementKeys = signers.map(({ name, publicKey, kinds }) => ({ name, key: publicKeyOf(publicKey), kinds }))
  const isSignatureNeeded = options.broker.mode === 'external' && hasPolicy && !trustBroker
  if (isSignatureNeeded && signers.length === 0)
    log.warn('policy ignores all measurements: mqtt.measurementKeys is empty', { hint: UNSIGNED_HINT })
  const running: { plane?: Plane } = {}
  let broker: Broker | undefined
  let target: BrokerTarget
  if (options.broker.mode === 'embedded') {
    const { listen, tls, users } = options.broker
    const onRefused = (why: string) => counters.refused.inc({ why })
    const onRetainedCommand = (message: IncomingMessage) => running.plane?.receive(message)
    broker = await startBroker({ listen, tls, topics, users, onRefused, onRetainedCommand, log })
    target = { attach: broker.attach, version: '3.1.1' }
  } else target = options.broker.target
  const own = options.broker.mode === 'embedded'
  const plane = new Plane({
    host,
    topics,
    target,
    clientId: own ? OWN_ID : ((options.broker as { clientId?: string }).clientId ?? `godwit-${options.tenant}-${host.gatewayId}`),
    sessionSeconds: own ? 0 : SESSION_SECONDS,
    workers: options.broker.mode === 'external' ? (options.broker.workers ?? 0) : 0,
    keys,
    measurementKeys,
    isSignatureNeeded,
    places: options.places,
    onMeasurement,
    metrics: counters,
    ...(options.backoff ? { backoff: options.backoff } : {}),
    log,
  })
  running.plane = plane
  const url = broker?.url ?? target.url ?? ''
  log.info('MQTT control plane ready', { broker: withoutCredentials(url), tenant: options.tenant, keys: keys.map(({ name }) => name) })
  return {
    url,
    get up() {
      return plane.up
    },
    async close() {
      await plane.close()
      await broker?.close()
    },
  }
}
