// The embedded MQTT broker (the one importer of aedes): MQTT 3.1.1, so that a small site needs no other.
// Enters: connections of users with passwords, and the gateway's own by a pipe within the process. Leaves: messages, as
// access.ts allows.
// Always holds: nobody without a password; packets are bounded before they are buffered (packet-limit.ts); connections,
// subscriptions and what waits for a reader are bounded (broker-limits.ts); what outsiders publish is never retained
// (it would stay for ever). Retained messages live in memory: the gateway says its own again after a restart.
import { createHash, timingSafeEqual } from 'node:crypto'
import { createServer, type Server, type Socket } from 'node:net'
import { Duplex, pipeline } from 'node:stream'
import { createServer as createTlsServer } from 'node:tls'
import { Aedes, type AedesOptions, type Client, type PublishPacket } from 'aedes'
import { PACKET_BYTES_MAX } from '../../../mqtt/channels.ts'
import type { IncomingMessage } from '../../../mqtt/client.ts'
import { PacketLimitStream } from '../../../mqtt/packet-limit.ts'
import { pipePair } from '../../../mqtt/pipe.ts'
import { isAction, type Topics } from '../../../mqtt/topics.ts'
import { quietly } from '../../../ops/quiet-log.ts'
import { GodwitError } from '../../../wire/errors.ts'
import type { Log } from '../../../wire/log.ts'
import { mayPublish, mayRead, maySubscribe, type UserRights } from './access.ts'
import { type BrokerLimits, CLIENTS_MAX, createBrokerLimits, DRAIN_MS, INBOUND_MAX, QUEUED_BEFORE_CONNACK_MAX } from './broker-limits.ts'

const CLIENT_ID = /^[A-Za-z0-9_.-]{1,64}$/
const HANDSHAKE_MS = 10_000
/**
 * For the gateway's own connection, however long this process is held up; strangers have their own deadline
 * (broker-limits.ts).
 */
const CONNECT_MS = 60_000
const KEEPALIVE_MAX_SECONDS = 600

export type BrokerUser = UserRights & { password: string }
type BrokerOptions = {
  listen: { host: string; port: number }
  /** PEM texts. Without it the broker speaks plain TCP: for the loopback. */
  tls?: { certificate: string; key: string } | undefined
  topics: Topics
  users: BrokerUser[]
  onRefused?: (why: BrokerRefusal) => void
  onRetainedCommand?: (message: IncomingMessage) => void
  log: Log
}
type BrokerRefusal = 'credentials' | 'topic' | 'packet' | 'strangers' | 'clients' | 'subscriptions' | 'slow'
export type Broker = {
  readonly url: string
  /** The gateway's own way in: it may say and read all of the tenant's topics. */
  attach(): Duplex
  close(): Promise<void>
}

/** CONFIG_INVALID when the address is taken. */
export async function startBroker(given: BrokerOptions): Promise<Broker> {
  // Anybody can make the broker refuse something.
  const options = { ...given, log: quietly(given.log) }
  const { listen, tls, onRefused = () => {}, log } = options
  const own = new WeakSet<object>()
  const limits = createBrokerLimits()
  const aedes = await Aedes.createBroker({
    connectTimeout: CONNECT_MS,
    drainTimeout: DRAIN_MS,
    keepaliveLimit: KEEPALIVE_MAX_SECONDS,
    maxTopicLevels: 16,
    maxInflightInbound: INBOUND_MAX,
    queueLimit: QUEUED_BEFORE_CONNACK_MAX,
    ...rules(options, limits, client => client !== null && own.has(client)),
  })
  aedes.on('unsubscribe', (filters, client) => limits.unsubscribed(client, filters))
  aedes.on('clientError', (client, error) => {
    if (limits.failed(client, error)) {
      onRefused('slow')
      log.warn('MQTT client disconnected: it does not read its subscriptions', { client: client.id })
    } else log.debug('MQTT client failed', { client: client.id, error })
  })
  aedes.on('connectionError', (_client, error) => log.debug('MQTT connection failed', { error }))

  const sockets = new Set<Socket>()
  const knock = (socket: Socket) => {
    if (limits.knock(socket)) return
    onRefused('strangers')
    socket.destroy()
  }
  const serve = (socket: Socket) => {
    if (socket.destroyed) return
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
    const limit = new PacketLimitStream(PACKET_BYTES_MAX)
    pipeline(socket, limit, error => {
      if (error instanceof GodwitError) {
        onRefused('packet')
        log.warn('MQTT client disconnected', { error })
      }
      if (error) socket.destroy()
    })
    // The types of Duplex.from do not know this form; its documentation does.
    limits.serves(aedes.handle(Duplex.from({ readable: limit, writable: socket } as never)), socket)
  }
  const secure = { cert: tls?.certificate, key: tls?.key, handshakeTimeout: HANDSHAKE_MS }
  const server = tls ? createTlsServer(secure, serve) : createServer({ noDelay: true }, serve)
  server.prependListener('connection', knock)
  server.maxConnections = CLIENTS_MAX
  if (tls) server.on('tlsClientError', error => log.debug('MQTT client failed at TLS', { error }))
  const port = await listening(server, listen)
  const host = listen.host.includes(':') ? `[${listen.host}]` : listen.host
  return {
    url: `${tls ? 'mqtts' : 'mqtt'}://${host}:${port}`,
    attach() {
      const [ours, theirs] = pipePair()
      own.add(aedes.handle(theirs))
      return ours
    },
    async close() {
      const closed = new Promise<void>(resolve => server.close(() => resolve()))
      await new Promise<void>(resolve => aedes.close(() => resolve()))
      for (const socket of sockets) socket.destroy()
      await closed
    },
  }
}

type Rules = Required<Pick<AedesOptions, 'preConnect' | 'authenticate' | 'authorizePublish' | 'authorizeSubscribe' | 'authorizeForward'>>

/** Who may come in, and say and read what. */
function rules(
  { topics, users, onRefused = () => {}, onRetainedCommand = () => {}, log }: BrokerOptions,
  limits: BrokerLimits,
  isOwn: (client: Client | null) => boolean,
): Rules {
  const known = new WeakMap<object, UserRights>()
  const find = credentials(users)
  const userOf = (client: Client | null) => (client ? known.get(client) : undefined)
  /** By client id: who holds it. An entry of a client that has gone is as good as none. */
  const holders = new Map<string, WeakRef<Client>>()
  const holderOf = (clientId: string) => {
    const holder = holders.get(clientId)?.deref()
    return holder && !holder.closed ? userOf(holder) : undefined
  }

  /**
   * MQTT 3.1.1 does not tell a subscriber that a message was retained: a command that was goes to its judge directly,
   * and nowhere else.
   */
  function withoutRetaining(packet: PublishPacket): void {
    packet.retain = false
    const { topic, payload } = packet
    const kind = topics.parse(topic)?.kind
    if (!kind || !isAction(kind)) return
    onRetainedCommand({ topic, payload: Buffer.from(payload), retained: true })
    packet.topic = `${topics.root}/nowhere`
  }

  return {
    preConnect(client, packet, done) {
      const isFine = isOwn(client) || CLIENT_ID.test(packet.clientId) || (packet.clientId === '' && packet.clean === true)
      if (!isFine) onRefused('credentials')
      // No session outlives its connection: what queues for a reader who is away would grow without bound.
      packet.clean = true
      done(isFine ? null : new Error('this client id is not allowed'), isFine)
    },
    authenticate(client, name, password, done) {
      if (isOwn(client)) return done(null, true)
      const user = find(name, password)
      const holder = holderOf(client.id)
      // Nobody takes the place of the gateway, or of another user, by its client id.
      if (!user || client.id === OWN_ID || (holder && holder.name !== user.name)) {
        onRefused('credentials')
        log.warn('MQTT client rejected', { user: shown(name), client: client.id })
        return done(Object.assign(new Error('not authorized'), { returnCode: 5 as const }), false)
      }
      if (!limits.enter(client, user.name)) {
        onRefused('clients')
        log.warn('MQTT client rejected: its user has too many connections, or was disconnected recently', {
          user: shown(name),
          client: client.id,
        })
        return done(Object.assign(new Error('too many connections'), { returnCode: 3 as const }), false)
      }
      known.set(client, user)
      holders.set(client.id, new WeakRef(client))
      if (holders.size > 2 * CLIENTS_MAX) for (const id of holders.keys()) if (!holderOf(id)) holders.delete(id)
      done(null, true)
    },
    authorizePublish(client, packet, done) {
      if (isOwn(client)) return done(null)
      const user = userOf(client)
      if (!user || !mayPublish(topics, user, packet.topic)) {
        onRefused('topic')
        return done(new Error('this user may not publish to this topic'))
      }
      if (packet.retain) withoutRetaining(packet)
      done(null)
    },
    authorizeSubscribe(client, subscription, done) {
      if (isOwn(client)) return done(null, subscription)
      const isAllowed = userOf(client) !== undefined && maySubscribe(topics, subscription.topic)
      if (isAllowed && limits.subscribes(client, subscription.topic)) return done(null, subscription)
      onRefused(isAllowed ? 'subscriptions' : 'topic')
      done(null, null)
    },
    authorizeForward(client, packet) {
      if (isOwn(client)) return packet
      const user = userOf(client)
      if (!user || !mayRead(topics, user, packet.topic)) return null
      return limits.mayWait(client, packet.qos) ? packet : null
    },
  }
}

/** A stranger's text in a log. */
const shown = (name: string | undefined): string | undefined => name?.slice(0, 64)

/** The client id of the gateway's own connection; nobody else may have it. */
export const OWN_ID = 'godwit-gateway'

/** Compares digests of all users, so that the time taken tells neither name nor password. */
function credentials(users: BrokerUser[]): (name: string | undefined, password: Buffer | undefined) => UserRights | undefined {
  const digest = (name: string, password: Buffer | string) => createHash('sha256').update(`${name}\n`).update(password).digest()
  const table = users.map(({ name, may, password }) => ({ user: { name, may }, digest: digest(name, password) }))
  return (name, password) => {
    const given = digest(name ?? '', password ?? '')
    let found: UserRights | undefined
    for (const entry of table) if (timingSafeEqual(entry.digest, given)) found = entry.user
    return found
  }
}

function listening(server: Server, { host, port }: { host: string; port: number }): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', cause =>
      reject(new GodwitError('CONFIG_INVALID', `cannot listen on ${host}:${port}: ${cause.message}`, { cause })),
    )
    server.listen(port, host, () => {
      const bound = server.address()
      resolve(typeof bound === 'object' && bound ? bound.port : port)
    })
  })
}
