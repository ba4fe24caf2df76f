// What one user, one address, and all together may take of the embedded broker. Enters: connections, clients, what they
// ask for. Leaves: yes or no.
// Always holds: who has not shown a password takes little and not for long; one user leaves room for others; a reader
// who does not read delays others by DRAIN_MS at most, is cut off, and does not come back at once.
import type { Socket } from 'node:net'
import { createAdmission } from '../../../transport/admission.ts'

/** Connections in all, and of one user. */
export const CLIENTS_MAX = 512
export const CLIENTS_PER_USER_MAX = 128
/** Connections that have not shown a password: BROKER_STRANGER_MS each. */
export const BROKER_STRANGERS = { total: 128, perAddress: 32 }
/** How long one has to show its password, TLS included, ms. */
export const BROKER_STRANGER_MS = 10_000
/** Subscriptions of one connection. */
export const BROKER_SUBSCRIPTIONS_MAX = 64
/** QoS 2 messages of one connection that wait for its PUBREL: each may have 64 KiB. */
export const INBOUND_MAX = 16
/** Packets of one connection that wait for its CONNACK. */
export const QUEUED_BEFORE_CONNACK_MAX = 8
/** A reader whose socket takes nothing for so long is cut off, ms. */
export const DRAIN_MS = 3_000
/** A user that was cut off is not let in again for so long, ms. */
const PENALTY_MS = 30_000

export type BrokerLimits = {
  /** A connection has come. False: there is no place for it. */
  knock(socket: Socket): boolean
  /** This client is at the other end of that connection. */
  serves(client: object, socket: Socket): void
  /** It has shown its password. False: its user has connections enough, or was cut off a moment ago. */
  enter(client: object, user: string): boolean
  subscribes(client: object, filter: string): boolean
  unsubscribed(client: object, filters: readonly string[]): void
  /** Whether a message for this client may wait in its queue: QoS 0 does not wait for a reader who is behind. */
  mayWait(client: object, qos: number): boolean
  /** Whether a client has failed because it does not read. */
  failed(client: object, error: Error): boolean
}

type Member = { user?: string; socket: Socket; filters: Set<string> }

export function createBrokerLimits(now: () => number = () => performance.now()): BrokerLimits {
  const strangers = createAdmission(BROKER_STRANGERS)
  /** By address and port: TLS shows another socket than the one that knocked. */
  const places = new Map<string, () => void>()
  const members = new WeakMap<object, Member>()
  const connections = new Map<string, number>()
  const penalties = new Map<string, number>()
  const nameOf = ({ remoteAddress, remotePort }: Socket) => `${remoteAddress} ${remotePort}`

  function leave({ user }: Member): void {
    if (user === undefined) return
    const rest = (connections.get(user) ?? 1) - 1
    if (rest > 0) connections.set(user, rest)
    else connections.delete(user)
  }

  return {
    knock(socket) {
      const giveBack = strangers.enter(socket.remoteAddress ?? '')
      if (!giveBack) return false
      const name = nameOf(socket)
      const late = setTimeout(() => socket.destroy(), BROKER_STRANGER_MS)
      const leave = () => {
        clearTimeout(late)
        giveBack()
      }
      places.set(name, leave)
      socket.once('close', () => {
        leave()
        if (places.get(name) === leave) places.delete(name)
      })
      return true
    },
    serves(client, socket) {
      const member: Member = { socket, filters: new Set() }
      members.set(client, member)
      socket.once('close', () => leave(member))
    },
    enter(client, user) {
      const member = members.get(client)
      const before = connections.get(user) ?? 0
      if (!member || before >= CLIENTS_PER_USER_MAX || (penalties.get(user) ?? 0) > now()) return false
      penalties.delete(user)
      connections.set(user, before + 1)
      member.user = user
      places.get(nameOf(member.socket))?.()
      return true
    },
    subscribes(client, filter) {
      const filters = members.get(client)?.filters
      if (!filters || (filters.size >= BROKER_SUBSCRIPTIONS_MAX && !filters.has(filter))) return false
      filters.add(filter)
      return true
    },
    unsubscribed(client, filters) {
      for (const filter of filters) members.get(client)?.filters.delete(filter)
    },
    mayWait(client, qos) {
      const member = members.get(client)
      return qos > 0 || member?.socket.writableNeedDrain !== true
    },
    failed(client, error) {
      const user = members.get(client)?.user
      if (user === undefined || error.message !== 'drain timeout') return false
      penalties.set(user, now() + PENALTY_MS)
      return true
    },
  }
}
