// The attacker process of bench/attack.ts. Enters: one task by IPC. Leaves: 'begun', then on request its number of
// attacks.
import { randomBytes } from 'node:crypto'
import { loadSodium } from '../../crypto/identity.ts'
import type { LinkIdentity } from '../../crypto/link-auth.ts'
import { authenticateToGateway } from '../../edge-node/link/authenticate.ts'
import { systemClock } from '../../ops/clock.ts'
import { sleep } from '../../ops/deadline.ts'
import { createQuicEngine } from '../../transport/quic.ts'
import { createTlsEngine } from '../../transport/tls.ts'
import type { Connection } from '../../transport/types.ts'
import { encodeFrame } from '../../wire/frame.ts'
import { toJson } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import {
  type AttackName,
  type Door,
  type Flood,
  falseHellos,
  flood,
  hugeFrames,
  manyStreams,
  silentConnections,
  silentSockets,
} from './floods.ts'

export type AttackTask = { engine: 'quic' | 'tls'; port: number; attack: AttackName; identity: LinkIdentity; rootPublic: Uint8Array }

/** A certified but hostile site. */
async function insider({ engine, port }: Door, { identity, rootPublic }: AttackTask): Promise<Connection> {
  const connection = await engine.connect({ host: '127.0.0.1', port })
  const random = (bytes: number) => new Uint8Array(randomBytes(bytes))
  await authenticateToGateway({ connection, purpose: 'control', incarnation: 1, identity, rootPublic, clock: systemClock, random })
  return connection
}

const unknownJoin = () => encodeFrame(FRAME.JOIN, toJson({ sessionId: randomBytes(16).toString('hex'), index: 0, attempt: 1 }))

/** Streams that send single bytes and never a whole frame. */
const drips = (connection: Connection): Flood =>
  flood(500, async signal => {
    const stream = await connection.openStream()
    for (;;) {
      signal.throwIfAborted()
      await stream.write(Uint8Array.of(0))
      await sleep(1000, signal)
    }
  })

async function begin(task: AttackTask): Promise<Flood[]> {
  const door: Door = { engine: task.engine === 'quic' ? createQuicEngine() : createTlsEngine(), port: task.port }
  const is = (name: AttackName) => task.attack === name || task.attack === 'all'
  const floods: Flood[] = []
  const needsInsider = is('streams') || is('drips')
  const connection = needsInsider ? await insider(door, task) : undefined
  if (connection && is('streams')) floods.push(manyStreams(connection, 200, unknownJoin))
  if (connection && is('drips')) floods.push(drips(connection))
  if (is('silent')) floods.push(silentConnections(door, 100), ...(task.engine === 'tls' ? [silentSockets(door, 200)] : []))
  if (is('hellos')) floods.push(falseHellos(door, 20))
  if (is('frames')) floods.push(hugeFrames(door, 20))
  return floods
}

let floods: Flood[] = []
process.on('message', (message: AttackTask | 'tell') => {
  if (message === 'tell') return void process.send?.({ kind: 'made', made: floods.reduce((sum, { made }) => sum + made, 0) })
  loadSodium()
    .then(() => begin(message))
    .then(begun => {
      floods = begun
      process.send?.({ kind: 'begun' })
    })
    .catch(error => {
      console.error(error)
      process.exit(1)
    })
})
