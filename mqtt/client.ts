// A connection to an MQTT broker that reconnects by itself (the only importer of mqtt). MQTT 5 if the broker supports
// it, else 3.1.1. Enters: broker and credentials, a Will, subscriptions. Leaves: messages; up and down; publish().
// retry.ts decides when to reconnect. Always holds: every connection is a new client without state of the previous one;
// the caller knows what to send again; publish() resolves when the broker has the message (QoS 1), rejects if the
// connection ends first, and never waits for a connection.
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import mqtt, { type IClientOptions, type IPublishPacket, MqttClient } from 'mqtt'
import { sleep, within } from '../ops/deadline.ts'
import { withoutCredentials } from '../ops/redact.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { PACKET_BYTES_MAX } from './channels.ts'
import type { MqttMessage } from './message.ts'
import { type Backoff, createRetry, NoAnswer, takenError, VersionRefused } from './retry.ts'

export type BrokerTarget = {
  /** mqtt://host:port or mqtts://host:port. */
  url?: string | undefined
  /** Instead of a network: a broker in this process. */
  attach?: (() => Duplex) | undefined
  username?: string | undefined
  password?: string | undefined
  /** PEM texts. */
  tls?: { ca?: string | undefined; certificate?: string | undefined; key?: string | undefined; servername?: string | undefined } | undefined
  /** `auto`: 5, and 3.1.1 if the broker rejects it. */
  version: 'auto' | '5' | '3.1.1'
}

export type IncomingMessage = {
  topic: string
  payload: Uint8Array
  retained: boolean
  responseTopic?: string | undefined
  correlationData?: Uint8Array | undefined
  traceparent?: string | undefined
}

export type MqttLinkOptions = {
  target: BrokerTarget
  clientId: string
  /** The broker publishes it if the connection ends without a DISCONNECT. Built for every connection. */
  will?: () => MqttMessage
  subscriptions: { topic: string; qos: 0 | 1 }[]
  /** Seconds that the broker keeps QoS 1 messages for a disconnected client; 0: none. */
  sessionSeconds?: number
  onMessage(message: IncomingMessage): void
  /** Subscribed, and ready to publish. */
  onUp?(version: 4 | 5): void
  onDown?(error: GodwitError): void
  backoff?: Backoff
  /** Tests only: backoff while another client uses the same id. */
  takenBackoff?: Backoff
  connectMs?: number
  /** The first connection must succeed at once: for interactive commands. */
  firstOrNever?: boolean
  log: Log
}

export type MqttLink = {
  readonly up: boolean
  /**
   * BROKER_UNREACHABLE while there is no connection, or if it ends first; AUTH_FAILED if the broker rejects the
   * message.
   */
  publish(message: MqttMessage): Promise<void>
  /** The first time it is up; rejects with the last error when `signal` is aborted. */
  whenUp(o: { timeoutMs: number; signal?: AbortSignal | undefined }): Promise<void>
  close(): Promise<void>
}

const CONNECT_MS = 10_000
/** There is no network in between: only this process can cause a delay, such as during its start. */
const OWN_PROCESS_CONNECT_MS = 60_000
const KEEPALIVE_SECONDS = 20
const CLOSE_MS = 2_000
/** A broker that acknowledges nothing for this time counts as lost. */
const PUBLISH_MS = 30_000
/** CONNACK: the broker does not support this version (3.1.1 and 5). */
const VERSION_REFUSED = new Set([1, 132])
const CREDENTIALS_REFUSED = new Set([4, 5, 134, 135])
/** DISCONNECT of MQTT 5: another client connected with the same client id. */
const SESSION_TAKEN_OVER = 142

type Session = { client: MqttClient; version: 4 | 5; gone: Promise<GodwitError> }

export function connectMqtt(options: MqttLinkOptions): MqttLink {
  const { log, target } = options
  const over = new AbortController()
  const ready = Promise.withResolvers<void>()
  ready.promise.catch(() => {})
  const retry = createRetry({ ...options, version: target.version, random: Math.random })
  let session: Session | undefined
  let lastError: GodwitError | undefined

  /** Returns why the connection ended. Throws if it was never established. */
  async function hold(): Promise<GodwitError> {
    const opened = await open(options, retry.version, over.signal)
    session = opened
    const upMs = performance.now()
    retry.connected()
    options.onUp?.(opened.version)
    ready.resolve()
    const error = await opened.gone
    session = undefined
    lastError = retry.ended(error, performance.now() - upMs)
    if (!over.signal.aborted) options.onDown?.(lastError)
    return lastError
  }

  async function live(): Promise<void> {
    let wasUp = false
    while (!over.signal.aborted) {
      const before = retry.version
      try {
        await hold()
        wasUp = true
      } catch (thrown) {
        lastError = thrown as GodwitError
        retry.failed(lastError)
        const goesOn = retry.version !== before || retry.triesAnother
        if (options.firstOrNever && !wasUp && !goesOn) return ready.reject(lastError)
      }
      if (over.signal.aborted) return
      const { waitMs, isWorthALine } = retry.next()
      if (retry.version !== before && waitMs === 0) sayVersion(log, before, lastError)
      else if (isWorthALine) log.warn('MQTT broker not reachable', { error: lastError, failures: retry.failures, hint: lastError?.hint })
      await sleep(waitMs, over.signal).catch(() => {})
    }
  }
  const living = live()

  return {
    get up() {
      return session !== undefined
    },
    publish: message =>
      session ? publish(session, message) : Promise.reject(lastError ?? new GodwitError('BROKER_UNREACHABLE', 'not connected yet')),
    whenUp: ({ timeoutMs, signal }) =>
      within(ready.promise, { ms: timeoutMs, what: 'the MQTT broker', code: 'BROKER_UNREACHABLE', signal }).catch(error => {
        throw lastError && error.code === 'BROKER_UNREACHABLE' ? lastError : error
      }),
    async close() {
      over.abort(new GodwitError('BROKER_UNREACHABLE', 'closed'))
      const client = session?.client
      session = undefined
      if (client) await end(client, false)
      await living
    },
  }
}

function sayVersion(log: Log, before: 4 | 5, error: GodwitError | undefined): void {
  const name = (version: 4 | 5) => (version === 5 ? '5' : '3.1.1')
  log.warn('MQTT broker rejected this version; trying the other', {
    version: name(before),
    next: name(before === 5 ? 4 : 5),
    error,
  })
}

/** One connection: connected and subscribed, or an error. */
async function open(options: MqttLinkOptions, version: 4 | 5, signal: AbortSignal): Promise<Session> {
  const client = build(options, version)
  const { target, clientId } = options
  const gone = Promise.withResolvers<GodwitError>()
  let cause: Error | undefined
  let reached = false
  let answered = false
  client.stream.once(target.url?.startsWith('mqtts:') ? 'secureConnect' : 'connect', () => {
    reached = target.attach === undefined
  })
  // A broker that accepts the connection without an answer may not support this version.
  const unanswered = (error: GodwitError) => (reached && !answered && isLoss(error) ? new NoAnswer(shownUrl(target), error) : error)
  client.on('error', error => {
    cause = error
    // A rejection has the code of CONNACK.
    answered ||= typeof (error as { code?: unknown }).code === 'number'
    gone.resolve(unanswered(errorOf(error, target)))
    end(client, true)
  })
  client.on('disconnect', packet => {
    if (packet.reasonCode !== SESSION_TAKEN_OVER) return
    gone.resolve(takenError(clientId))
    end(client, true)
  })
  client.on('close', () => gone.resolve(unanswered(errorOf(cause ?? new Error('the connection was closed'), target))))
  client.on('message', (topic, payload, packet) => options.onMessage(incomingOf(topic, payload, packet)))
  const connected = new Promise<void>(resolve => {
    client.once('connect', () => {
      answered = true
      resolve()
    })
  })
  // Small messages in both directions: with Nagle's algorithm each would wait for the delayed acknowledgement of the
  // other end, 40 ms.
  if (client.stream instanceof Socket) client.stream.setNoDelay(true)
  const lost = gone.promise.then(error => Promise.reject(error))
  lost.catch(() => {})
  try {
    const ms = connectMsOf(options)
    const what = `the MQTT broker${target.url === undefined ? '' : ` at ${shownUrl(target)}`}`
    await within(Promise.race([connected, lost]), { ms, what, code: 'BROKER_UNREACHABLE', signal }).catch(error => {
      throw signal.aborted ? error : unanswered(error)
    })
    await within(Promise.race([subscribe(client, options), lost]), { ms, what: 'SUBACK', code: 'BROKER_UNREACHABLE', signal })
  } catch (error) {
    await end(client, true)
    throw error
  }
  return { client, version, gone: gone.promise }
}

const connectMsOf = ({ connectMs, target }: MqttLinkOptions): number => connectMs ?? (target.attach ? OWN_PROCESS_CONNECT_MS : CONNECT_MS)

const isLoss = (error: GodwitError): boolean =>
  error.code === 'BROKER_UNREACHABLE' && !(error instanceof VersionRefused || error instanceof NoAnswer)

function build(linkOptions: MqttLinkOptions, version: 4 | 5): MqttClient {
  const { target, clientId, will, sessionSeconds = 0 } = linkOptions
  const last = will?.()
  const options: IClientOptions = {
    clientId,
    protocolVersion: version,
    protocolId: 'MQTT',
    clean: sessionSeconds === 0,
    keepalive: KEEPALIVE_SECONDS,
    reschedulePings: false,
    connectTimeout: connectMsOf(linkOptions),
    reconnectPeriod: 0,
    resubscribe: false,
    queueQoSZero: false,
    ...(target.username === undefined ? {} : { username: target.username }),
    ...(target.password === undefined ? {} : { password: target.password }),
    ...(last ? { will: { topic: last.topic, payload: Buffer.from(last.payload), qos: last.qos, retain: last.retained } } : {}),
    ...(version === 5
      ? { properties: { maximumPacketSize: PACKET_BYTES_MAX, receiveMaximum: 1024, sessionExpiryInterval: sessionSeconds } }
      : {}),
  }
  const { attach, tls = {} } = target
  if (attach) return new MqttClient(() => attach() as never, options)
  const { ca, certificate, key, servername } = tls
  return mqtt.connect(target.url ?? '', {
    ...options,
    ...(ca === undefined ? {} : { ca }),
    ...(certificate === undefined ? {} : { cert: certificate }),
    ...(key === undefined ? {} : { key }),
    ...(servername === undefined ? {} : { servername }),
    rejectUnauthorized: true,
  })
}

async function subscribe(client: MqttClient, { subscriptions, log }: MqttLinkOptions): Promise<void> {
  if (subscriptions.length === 0) return
  // rap: the retain flag as it was published, so that a retained command is recognised at once (MQTT 5).
  const wanted = Object.fromEntries(subscriptions.map(({ topic, qos }) => [topic, { qos, rap: true }]))
  await new Promise<void>((resolve, reject) => {
    client.subscribe(wanted, (error, _granted, answer) => {
      const codes = (answer?.granted ?? []) as number[]
      const refused = subscriptions.filter((_, at) => (codes[at] ?? 0) >= 128)
      for (const { topic } of refused) log.error('MQTT broker rejected a subscription', { topic })
      const all = refused.length === subscriptions.length || (error && refused.length === 0)
      if (!all) return resolve()
      reject(error instanceof GodwitError ? error : new GodwitError('AUTH_FAILED', 'the MQTT broker rejected all subscriptions'))
    })
  })
}

function publish({ client, version, gone }: Session, message: MqttMessage): Promise<void> {
  const { topic, payload, qos, retained, expirySeconds, schema, traceparent, correlationData } = message
  const userProperties = { ...(schema ? { schema } : {}), ...(traceparent ? { traceparent } : {}) }
  const properties =
    version === 5 && payload !== ''
      ? {
          properties: {
            contentType: 'application/json',
            // An empty object would never be sent, without an error (mqtt-packet 9).
            ...(Object.keys(userProperties).length > 0 ? { userProperties } : {}),
            ...(expirySeconds === undefined ? {} : { messageExpiryInterval: expirySeconds }),
            ...(correlationData ? { correlationData: Buffer.from(correlationData) } : {}),
          },
        }
      : {}
  const sent = new Promise<void>((resolve, reject) => {
    client.publish(topic, payload, { qos, retain: retained, ...properties }, error => {
      if (!error) return resolve()
      const code = client.connected && !client.disconnecting ? 'AUTH_FAILED' : 'BROKER_UNREACHABLE'
      reject(new GodwitError(code, `the broker did not accept the message: ${error.message}`, { cause: error }))
    })
  })
  const lost = gone.then(error => Promise.reject(new GodwitError('BROKER_UNREACHABLE', error.message, { cause: error })))
  return within(Promise.race([sent, lost]), { ms: PUBLISH_MS, what: `PUBLISH ${topic}`, code: 'BROKER_UNREACHABLE' })
}

function end(client: MqttClient, force: boolean): Promise<void> {
  const ended = new Promise<void>(resolve => client.end(force, {}, () => resolve()))
  return within(ended, { ms: CLOSE_MS, what: 'DISCONNECT' }).catch(() => {
    client.stream?.destroy()
  })
}

function incomingOf(topic: string, payload: Uint8Array, { retain, properties }: IPublishPacket): IncomingMessage {
  const traceparent = properties?.userProperties?.['traceparent']
  return {
    topic,
    payload,
    retained: retain,
    responseTopic: properties?.responseTopic,
    correlationData: properties?.correlationData,
    traceparent: typeof traceparent === 'string' ? traceparent : undefined,
  }
}

function errorOf(error: Error, target: BrokerTarget): GodwitError {
  if (error instanceof GodwitError) return error
  const code = (error as { code?: unknown }).code
  if (typeof code === 'number' && VERSION_REFUSED.has(code)) return new VersionRefused()
  const where = target.url === undefined ? 'the MQTT broker' : `the MQTT broker at ${shownUrl(target)}`
  if (typeof code === 'number' && CREDENTIALS_REFUSED.has(code))
    return new GodwitError('AUTH_FAILED', `${where} rejected the credentials: ${error.message}`, {
      cause: error,
      hint: "check user name, password or client certificate, and the broker's access list",
    })
  return new GodwitError('BROKER_UNREACHABLE', `${where}: ${error.message || String(code ?? 'no answer')}`, { cause: error })
}

/** The address without its password, for messages. */
const shownUrl = ({ url }: BrokerTarget): string => withoutCredentials(url ?? 'this process')
