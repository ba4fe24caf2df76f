// A connection to an MQTT broker that comes back by itself (the one importer of mqtt). MQTT 5 where the broker speaks it, else 3.1.1.
// Enters: where and who, a Will, subscriptions. Leaves: messages; up and down; publish().
// Always holds: every connection is a fresh client with nothing left over from the one before: what is to be said again, the caller knows;
// publish() resolves when the broker has it (QoS 1) and rejects when the connection goes first; it never waits for a connection.
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import mqtt, { type IClientOptions, type IPublishPacket, MqttClient } from 'mqtt'
import { sleep, within } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'
import type { Log } from '../../../wire/log.ts'
import { PACKET_BYTES_MAX } from './channels.ts'
import type { Outgoing } from './outbox.ts'

export type BrokerTarget = {
  /** mqtt://host:port or mqtts://host:port. */
  url?: string | undefined
  /** Instead of a network: a broker in this process. */
  attach?: (() => Duplex) | undefined
  username?: string | undefined
  password?: string | undefined
  /** PEM texts. */
  tls?: { ca?: string | undefined; certificate?: string | undefined; key?: string | undefined; servername?: string | undefined } | undefined
  /** `auto`: 5, and 3.1.1 where the broker refuses it. */
  version: 'auto' | '5' | '3.1.1'
}

export type Incoming = {
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
  /** Said by the broker when we are gone without a word. Asked for at every connection. */
  will?: () => Outgoing
  subscriptions: { topic: string; qos: 0 | 1 }[]
  /** Seconds that the broker keeps QoS 1 messages for us while we are away; 0: none. */
  sessionSeconds?: number
  onMessage(message: Incoming): void
  /** Subscribed, and ready to publish. */
  onUp?(version: 4 | 5): void
  onDown?(error: GodwitError): void
  backoff?: { firstMs: number; maxMs: number }
  connectMs?: number
  /** The first connection must come about at once: for a person who waits. */
  firstOrNever?: boolean
  log: Log
}

export type MqttLink = {
  readonly up: boolean
  /** BROKER_UNREACHABLE while there is no connection, or when it goes first; AUTH_FAILED when the broker does not want it. */
  publish(message: Outgoing): Promise<void>
  /** The first time it is up; rejects with what stood in the way when `signal` says stop. */
  whenUp(o: { timeoutMs: number; signal?: AbortSignal | undefined }): Promise<void>
  close(): Promise<void>
}

const CONNECT_MS = 10_000
const KEEPALIVE_SECONDS = 20
const CLOSE_MS = 2_000
/** A broker that acknowledges nothing for so long is as good as gone. */
const PUBLISH_MS = 30_000
const BACKOFF = { firstMs: 200, maxMs: 10_000 }
/** CONNACK: the broker does not speak this version (3.1.1 and 5). */
const VERSION_REFUSED = new Set([1, 132])
const CREDENTIALS_REFUSED = new Set([4, 5, 134, 135])

type Session = { client: MqttClient; version: 4 | 5; gone: Promise<GodwitError> }

export function connectMqtt(options: MqttLinkOptions): MqttLink {
  const { log, backoff = BACKOFF } = options
  const over = new AbortController()
  const ready = Promise.withResolvers<void>()
  ready.promise.catch(() => {})
  let version: 4 | 5 = options.target.version === '3.1.1' ? 4 : 5
  let session: Session | undefined
  let lastError: GodwitError | undefined

  async function live(): Promise<void> {
    let wasUp = false
    for (let attempt = 0; !over.signal.aborted; attempt++) {
      try {
        const opened = await open(options, version, over.signal)
        session = opened
        wasUp = true
        attempt = 0
        options.onUp?.(opened.version)
        ready.resolve()
        lastError = await opened.gone
      } catch (thrown) {
        lastError = thrown as GodwitError
        if (thrown instanceof VersionRefused && version === 5 && options.target.version === 'auto') {
          version = 4
          continue
        }
        if (options.firstOrNever && !wasUp) return ready.reject(lastError)
      }
      const was = session !== undefined
      session = undefined
      if (over.signal.aborted) return
      if (was || attempt === 0) log.warn('the MQTT broker is away', { error: lastError })
      if (was) options.onDown?.(lastError)
      const waitMs = Math.min(backoff.maxMs, backoff.firstMs * 2 ** Math.min(attempt, 16)) * (0.5 + Math.random() / 2)
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

class VersionRefused extends GodwitError {
  constructor() {
    super('BROKER_UNREACHABLE', 'the broker does not speak this version of MQTT')
  }
}

/** One connection: connected and subscribed, or an error. */
async function open(options: MqttLinkOptions, version: 4 | 5, signal: AbortSignal): Promise<Session> {
  const client = build(options, version)
  const gone = Promise.withResolvers<GodwitError>()
  let cause: Error | undefined
  client.on('error', error => {
    cause = error
    gone.resolve(errorOf(error, options.target))
    end(client, true)
  })
  client.on('close', () => gone.resolve(errorOf(cause ?? new Error('the connection was closed'), options.target)))
  client.on('message', (topic, payload, packet) => options.onMessage(incomingOf(topic, payload, packet)))
  const connected = new Promise<void>(resolve => client.once('connect', () => resolve()))
  // Small messages in both directions: with Nagle's algorithm each waits for the other end's delayed acknowledgement, 40 ms.
  if (client.stream instanceof Socket) client.stream.setNoDelay(true)
  const lost = gone.promise.then(error => Promise.reject(error))
  lost.catch(() => {})
  try {
    const ms = options.connectMs ?? CONNECT_MS
    await within(Promise.race([connected, lost]), { ms, what: 'the MQTT broker', code: 'BROKER_UNREACHABLE', signal })
    await within(Promise.race([subscribe(client, options), lost]), { ms, what: 'SUBACK', code: 'BROKER_UNREACHABLE', signal })
  } catch (error) {
    await end(client, true)
    throw error
  }
  return { client, version, gone: gone.promise }
}

function build({ target, clientId, will, sessionSeconds = 0, connectMs = CONNECT_MS }: MqttLinkOptions, version: 4 | 5): MqttClient {
  const last = will?.()
  const options: IClientOptions = {
    clientId,
    protocolVersion: version,
    protocolId: 'MQTT',
    clean: sessionSeconds === 0,
    keepalive: KEEPALIVE_SECONDS,
    reschedulePings: false,
    connectTimeout: connectMs,
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
  // rap: the retain flag as it was published, so that a retained command is known for what it is at once (MQTT 5).
  const wanted = Object.fromEntries(subscriptions.map(({ topic, qos }) => [topic, { qos, rap: true }]))
  await new Promise<void>((resolve, reject) => {
    client.subscribe(wanted, (error, granted) => {
      const refused = (granted ?? []).filter(({ qos }) => qos >= 128)
      for (const { topic } of refused) log.error('the MQTT broker refuses a subscription', { topic })
      const all = refused.length === subscriptions.length || (error && refused.length === 0)
      if (!all) return resolve()
      reject(error instanceof GodwitError ? error : new GodwitError('AUTH_FAILED', 'the MQTT broker refuses our subscriptions'))
    })
  })
}

function publish({ client, version, gone }: Session, message: Outgoing): Promise<void> {
  const { topic, payload, qos, retained, expirySeconds, schema, traceparent, correlationData } = message
  const userProperties = { ...(schema ? { schema } : {}), ...(traceparent ? { traceparent } : {}) }
  const properties =
    version === 5 && payload !== ''
      ? {
          properties: {
            contentType: 'application/json',
            // An empty one would never be sent, and no error would say so (mqtt-packet 9).
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
      reject(new GodwitError(code, `a message was not taken: ${error.message}`, { cause: error }))
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

function incomingOf(topic: string, payload: Uint8Array, { retain, properties }: IPublishPacket): Incoming {
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

function errorOf(error: Error, { url }: BrokerTarget): GodwitError {
  if (error instanceof GodwitError) return error
  const code = (error as { code?: unknown }).code
  if (typeof code === 'number' && VERSION_REFUSED.has(code)) return new VersionRefused()
  const where = url === undefined ? 'the MQTT broker' : `the MQTT broker at ${url}`
  if (typeof code === 'number' && CREDENTIALS_REFUSED.has(code))
    return new GodwitError('AUTH_FAILED', `${where} refuses our credentials: ${error.message}`, {
      cause: error,
      hint: "check user name, password or client certificate, and the broker's access list",
    })
  return new GodwitError('BROKER_UNREACHABLE', `${where}: ${error.message || String(code ?? 'no answer')}`, { cause: error })
}
