// The control plane over MQTT: what the gateway says and hears at a broker (docs/reference/mqtt.md).
// Enters: messages of a broker that nobody trusts, events of the gateway. Leaves: births, placements, statuses,
// replies; measurements for `onMeasurement`; migrations started, cancelled, VMs pinned, by signed command only.
// Always holds: a migration never waits for the broker: events are taken in, put into the outbox, and that is all; when
// the broker comes back everything that stands is said again; every refusal has a code, is counted, and is told where
// the commander can read it.

import { CHANNELS, schemaName } from '../../../mqtt/channels.ts'
import { type BrokerTarget, connectMqtt, type IncomingMessage, type MqttLink, type MqttLinkOptions } from '../../../mqtt/client.ts'
import type { MqttMessage } from '../../../mqtt/message.ts'
import type { Command, Reply } from '../../../mqtt/schemas.ts'
import { ACTIONS, type Action, isAction, MEASURED, type Parameters, type Topic, type TopicKind, type Topics } from '../../../mqtt/topics.ts'
import type { Metrics } from '../../../ops/metrics.ts'
import { quietly } from '../../../ops/quiet-log.ts'
import { GodwitError, hasCode, toGodwitError } from '../../../wire/errors.ts'
import type { Log } from '../../../wire/log.ts'
import type { GatewayEvent } from '../../handoff/events.ts'
import type { FrontHost } from '../../handoff/host.ts'
import {
  createMeasurements,
  isMeasured,
  type Measurement,
  type MeasurementKey,
  type MeasurementOutcome,
  type Measurements,
} from '../../handoff/measurements.ts'
import { problemOf } from '../../handoff/problems.ts'
import { Announcer } from './announcer.ts'
import { carryOut } from './carry-out.ts'
import { type AllowedKey, type Commands, createCommands } from './commands.ts'
import { rfc3339, type SitePlace } from './facts.ts'
import { Handoffs } from './handoffs.ts'
import { createKnown, type Known } from './known.ts'
import { MqttOutbox } from './outbox.ts'

const IN_FLIGHT_MAX = 64
const CARRYING_OUT_MAX = 256
const SETTLE_MS = 25
const TELEMETRY_EVERY_MS = 5_000
const LINKS_EVERY_MS = 20_000
const LINKS_AGAIN_MS = 5_000
const TIDY_EVERY_MS = 60_000
const FAREWELL_MS = 1_000
const REPLY_GOOD_MS = 60_000
const NOT_RETAINED = { outcome: 'old', why: 'the broker retained it' } as const

type PlaneOptions = {
  host: FrontHost
  topics: Topics
  target: BrokerTarget
  clientId: string
  sessionSeconds?: number
  /** Connections that share users' measurements; 0: they come over the one that carries everything else. */
  workers?: number
  keys: AllowedKey[]
  measurementKeys?: readonly MeasurementKey[]
  /** Measurements that no key of these has signed are refused. */
  isSignatureNeeded?: boolean
  places?: Record<string, SitePlace> | undefined
  onMeasurement?: ((measurement: Measurement) => void) | undefined
  metrics: PlaneMetrics
  /** Tests only. */
  backoff?: MqttLinkOptions['backoff']
  log: Log
}

type PlaneMetrics = ReturnType<typeof createPlaneMetrics>

export function createPlaneMetrics(metrics: Metrics) {
  return {
    commands: metrics.counter('mqtt_commands_total', 'Commands received, by action and outcome.', ['action', 'outcome']),
    measurements: metrics.counter('mqtt_measurements_total', 'Measurements received, by kind and outcome.', ['kind', 'outcome']),
    published: metrics.counter('mqtt_published_total', 'Messages that the broker accepted, by kind.', ['kind']),
    dropped: metrics.counter('mqtt_dropped_total', 'Messages dropped before sending, by reason.', ['reason']),
    connections: metrics.counter('mqtt_connections_total', 'Connections established to the broker.'),
    refused: metrics.counter('mqtt_broker_refused_total', 'Clients and messages that the embedded broker rejected, by reason.', ['why']),
    up: metrics.gauge('mqtt_up', '1 while the broker is connected, else 0.'),
  }
}

export class Plane {
  readonly #options: PlaneOptions
  readonly #commands: Commands
  readonly #measurements: Measurements
  readonly #known: Known
  readonly #outbox: MqttOutbox
  readonly #announcer: Announcer
  readonly #handoffs: Handoffs
  readonly #link: MqttLink
  readonly #workers: MqttLink[]
  readonly #refusals: Log
  readonly #timers: NodeJS.Timeout[] = []
  readonly #unsubscribe: () => void
  readonly #changedSites = new Set<string>()
  readonly #changedVms = new Set<string>()
  #settling: NodeJS.Timeout | undefined
  #linksAtMs = Number.NEGATIVE_INFINITY
  #inFlight = 0
  #carryingOut = 0
  #bdSeq = 0
  #drained: (() => void) | undefined

  constructor(options: PlaneOptions) {
    this.#options = options
    const { host, topics, keys, measurementKeys = [], isSignatureNeeded = false, places = {}, metrics, log } = options
    this.#commands = createCommands({ topics, keys })
    this.#known = createKnown(host)
    const { isSite, isVm } = this.#known
    this.#measurements = createMeasurements({ topics, keys: measurementKeys, isSignatureNeeded, isSite, isVm })
    this.#refusals = quietly(log)
    this.#outbox = new MqttOutbox(reason => metrics.dropped.inc({ reason }))
    const say = this.#say.bind(this)
    this.#announcer = new Announcer(host, say, places)
    const rtts = ({ vm, source, target }: { vm: string; source: string; target: string }) => ({
      rttBeforeMs: this.#announcer.rtt(vm, source),
      rttAfterMs: this.#announcer.rtt(vm, target),
    })
    this.#handoffs = new Handoffs({ host, say, source: `/${topics.root}/gateway/${host.gatewayId}`, rtts })
    this.#link = this.#connect()
    this.#workers = Array.from({ length: options.workers ?? 0 }, (_, at) => this.#connectWorker(at + 1))
    this.#say('gatewayState', { gatewayId: host.gatewayId }, this.#birth())
    this.#announcer.refreshAll()
    this.#handoffs.begin()
    this.#unsubscribe = host.events.subscribe(event => this.#event(event))
    this.#every(TELEMETRY_EVERY_MS, () => this.#announcer.telemetry())
    this.#every(LINKS_EVERY_MS, () => this.#links(0))
    this.#every(TIDY_EVERY_MS, () => {
      this.#handoffs.tidy()
      this.#measurements.tidy(host.clock.now())
    })
  }

  get up(): boolean {
    return this.#link.up
  }

  /** Says goodbye, if the broker is there to hear it, and goes. */
  async close(): Promise<void> {
    this.#unsubscribe()
    for (const timer of this.#timers) clearInterval(timer)
    clearTimeout(this.#settling)
    this.#say('gatewayState', { gatewayId: this.#options.host.gatewayId }, this.#death())
    if (this.#link.up) await this.#untilDrained()
    await Promise.all([this.#link, ...this.#workers].map(link => link.close()))
  }

  #connect(): MqttLink {
    const { target, clientId, sessionSeconds = 0, workers = 0, topics, metrics, log, backoff, host } = this.#options
    const one = [...ACTIONS].map(action => ({ topic: topics.filter(action), qos: 1 as const }))
    const none = (workers > 0 ? (['siteLink'] as const) : MEASURED).map(kind => ({ topic: topics.filter(kind), qos: 0 as const }))
    return connectMqtt({
      target,
      clientId,
      sessionSeconds,
      will: () => {
        this.#bdSeq = Math.floor(host.clock.now())
        const topic = topics.build('gatewayState', { gatewayId: host.gatewayId })
        return { topic, payload: JSON.stringify(this.#death()), qos: 1, retained: true }
      },
      subscriptions: [...one, ...none],
      onMessage: message => this.receive(message),
      onUp: version => {
        log.info('MQTT broker connected', { version })
        metrics.connections.inc()
        metrics.up.set(1)
        this.#say('gatewayState', { gatewayId: host.gatewayId }, this.#birth())
        this.#outbox.replay()
        this.#pump()
      },
      onDown: () => {
        metrics.up.set(0)
        this.#outbox.offline()
      },
      ...(backoff ? { backoff } : {}),
      log,
    })
  }

  /** Each message of the group to one of its connections; whichever comes first, only a rising `seq` counts. */
  #connectWorker(number: number): MqttLink {
    const { target, clientId, topics, backoff, host, log } = this.#options
    const subscriptions = MEASURED.filter(kind => kind !== 'siteLink').map(kind => ({
      topic: `$share/gw-${host.gatewayId}/${topics.filter(kind)}`,
      qos: 0 as const,
    }))
    return connectMqtt({
      ...{ target, clientId: `${clientId}-${number}`, subscriptions, log },
      onMessage: message => this.receive(message),
      ...(backoff ? { backoff } : {}),
    })
  }

  #birth(): object {
    const { gatewayId, version, startedAt, clock } = this.#options.host
    return { online: true, timestamp: rfc3339(clock.now()), bdSeq: this.#bdSeq, gatewayId, version, startedAt: rfc3339(startedAt) }
  }

  #death(): object {
    return { online: false, timestamp: rfc3339(this.#options.host.clock.now()), bdSeq: this.#bdSeq }
  }

  #every(ms: number, work: () => void): void {
    this.#timers.push(setInterval(work, ms).unref())
  }

  // --- From the gateway
  // -------------------------------------------------------------------------------------------------------------

  #event(event: GatewayEvent): void {
    switch (event.event) {
      case 'site':
        this.#known.changed()
        this.#changedSites.add(event.site)
        this.#settle()
        break
      case 'pin':
        this.#changedVms.add(event.vm)
        this.#settle()
        break
      case 'handoff':
        this.#handoffs.changed(event.handoff)
        break
      case 'progress':
        this.#handoffs.progress(event.migration, event.progress)
        break
      case 'forgotten':
        this.#handoffs.forget(event.migrationId)
    }
  }

  /** Sites that come together speak many times: once is said. */
  #settle(): void {
    this.#settling ??= setTimeout(() => {
      this.#settling = undefined
      const [sites, vms] = [[...this.#changedSites], [...this.#changedVms]]
      this.#changedSites.clear()
      this.#changedVms.clear()
      this.#announcer.refresh(sites, vms)
      if (sites.length > 0) this.#links(LINKS_AGAIN_MS)
    }, SETTLE_MS)
  }

  /** There may be a thousand: not at every word of a site. */
  #links(againMs: number): void {
    const nowMs = this.#options.host.clock.now()
    if (nowMs - this.#linksAtMs < againMs) return
    this.#linksAtMs = nowMs
    this.#announcer.links()
  }

  // --- To the broker
  // ----------------------------------------------------------------------------------------------------------------

  #say(
    kind: TopicKind,
    parameters: Parameters,
    payload: object | null,
    extra: { traceparent?: string | undefined; correlationData?: Uint8Array | undefined } = {},
  ): void {
    const { topics, host, log } = this.#options
    const { schema, qos, retained, expirySeconds } = CHANNELS[kind]
    const topic = topics.build(kind, parameters)
    if (payload === null) {
      this.#outbox.clear(topic)
      this.#pump()
      return
    }
    const checked = schema.safeParse(payload)
    if (!checked.success) {
      log.error('outgoing MQTT message violates its schema', { kind, issue: checked.error.issues[0] })
      return
    }
    const staleAtMs = kind === 'reply' ? host.clock.now() + REPLY_GOOD_MS : undefined
    const message: MqttMessage = {
      topic,
      payload: JSON.stringify(payload),
      qos,
      retained,
      expirySeconds,
      staleAtMs,
      schema: schemaName(kind),
      ...extra,
    }
    if (this.#outbox.put(message, this.#link?.up ?? false)) this.#pump()
  }

  #pump(): void {
    if (!this.#link?.up) return
    while (this.#inFlight < IN_FLIGHT_MAX) {
      const message = this.#outbox.next(this.#options.host.clock.now())
      if (!message) break
      this.#inFlight += 1
      this.#publish(message).finally(() => {
        this.#inFlight -= 1
        this.#pump()
      })
    }
    if (this.#inFlight === 0) this.#drained?.()
  }

  async #publish(message: MqttMessage): Promise<void> {
    try {
      await this.#link.publish(message)
      this.#outbox.sent(message)
      const kind = this.#options.topics.parse(message.topic)?.kind ?? 'other'
      this.#options.metrics.published.inc({ kind })
    } catch (error) {
      if (hasCode(error, 'BROKER_UNREACHABLE')) return this.#outbox.failed(message)
      this.#outbox.refused()
      this.#options.log.error('MQTT broker rejected a message', { topic: message.topic, error })
    }
  }

  async #untilDrained(): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>(resolve => {
      this.#drained = resolve
      timer = setTimeout(resolve, FAREWELL_MS)
      this.#pump()
    })
    clearTimeout(timer)
  }

  // --- From the broker
  // --------------------------------------------------------------------------------------------------------------

  /** A message of the broker, or of one in this process. Never throws. */
  receive(message: IncomingMessage): void {
    const topic = this.#options.topics.parse(message.topic)
    if (!topic) return
    try {
      if (isAction(topic.kind)) this.#command(topic.kind, message)
      else if (isMeasured(topic.kind)) this.#measured(topic, message)
    } catch (error) {
      this.#refusals.error('MQTT message not processed', { topic: message.topic, error })
    }
  }

  #measured(topic: Topic, { payload, retained }: IncomingMessage): void {
    const { metrics, onMeasurement, host } = this.#options
    const isLink = topic.kind === 'siteLink'
    // Our own word comes back to us.
    if (isLink && topic.parameters.peerId === host.gatewayId) return
    const nowMs = host.clock.now()
    const taken = retained && !isLink ? NOT_RETAINED : this.#measurements.take(topic, payload, nowMs)
    metrics.measurements.inc({ kind: topic.kind, outcome: taken.outcome })
    if (taken.outcome !== 'taken') {
      this.#refused(topic, taken)
      return
    }
    const { measurement } = taken
    if (measurement.kind === 'link') this.#announcer.linkHeard(measurement.site, measurement.peer, nowMs)
    if (measurement.kind === 'latency' && this.#announcer.heard(measurement.ueKey, measurement.value, nowMs)) {
      this.#changedVms.add(measurement.value.vmId)
      this.#settle()
    }
    onMeasurement?.(measurement)
  }

  /** Operators must see what they have to act upon; what any sender may cause is for the counter and the debug log. */
  #refused({ kind, parameters }: Topic, { outcome, why }: { outcome: MeasurementOutcome; why: string }): void {
    const fields = { kind, ...parameters, outcome, why }
    if (outcome === 'unsigned' || outcome === 'forged' || outcome === 'limit') this.#refusals.warn('measurement rejected', fields)
    else this.#options.log.debug('measurement rejected', fields)
  }

  #command(action: Action, message: IncomingMessage): void {
    const { host, topics, metrics } = this.#options
    // What takes a retained command away: ours, or an operator's.
    if (message.payload.length === 0) return
    const verdict = this.#commands.take({ action, ...message }, host.clock.now())
    if (message.retained) {
      this.#outbox.clear(topics.build(action))
      this.#pump()
    }
    switch (verdict.verdict) {
      case 'rejected': {
        const { commandId, replyTo, error } = verdict
        metrics.commands.inc({ action, outcome: error.code })
        this.#refusals.warn('command rejected', { action, commandId, code: error.code, reason: error.message })
        const problem = problemOf(error)
        const at = rfc3339(host.clock.now())
        this.#say('gatewayProblem', { gatewayId: host.gatewayId }, { at, topic: message.topic, commandId, problem })
        this.#reply(replyTo, { commandId, status: 'rejected', at, problem }, message)
        break
      }
      case 'duplicate':
        metrics.commands.inc({ action, outcome: 'duplicate' })
        verdict.original.then(reply =>
          this.#reply(verdict.replyTo, { ...reply, status: 'duplicate', at: rfc3339(host.clock.now()) }, message),
        )
        break
      case 'accepted': {
        const reply = this.#carryOut(verdict.command)
        verdict.settle(reply)
        reply.then(answer => this.#reply(verdict.replyTo, answer, message))
      }
    }
  }

  /** Never rejects: a refusal is a reply. */
  async #carryOut(command: Command): Promise<Reply> {
    const { host, metrics, log } = this.#options
    const { action, commandId, vmId, reason, sig } = command
    const at = () => rfc3339(host.clock.now())
    try {
      if (this.#carryingOut >= CARRYING_OUT_MAX) throw new GodwitError('LIMIT_EXCEEDED', 'too many commands are being executed')
      this.#carryingOut += 1
      const handoffId = await carryOut(command, host, this.#handoffs).finally(() => (this.#carryingOut -= 1))
      metrics.commands.inc({ action, outcome: 'accepted' })
      log.info('command executed', { action, commandId, vm: vmId, key: sig.key, reason, handoffId })
      return { commandId, status: 'accepted', at: at(), ...(handoffId ? { handoffId } : {}) }
    } catch (thrown) {
      const error = toGodwitError(thrown)
      metrics.commands.inc({ action, outcome: error.code })
      log.warn('command failed', { action, commandId, vm: vmId, key: sig.key, error })
      return { commandId, status: 'rejected', at: at(), problem: problemOf(error) }
    }
  }

  #reply(replyTo: string | undefined, reply: Reply, { correlationData, traceparent }: IncomingMessage): void {
    const clientId = replyTo === undefined ? undefined : this.#options.topics.parse(replyTo)?.parameters.clientId
    if (clientId !== undefined) this.#say('reply', { clientId }, reply, { correlationData, traceparent })
  }
}
