// Nodes, gateways and sites of different releases: an old one with a new one in both roles, ranges that do not meet,
// garbage in a range.

import { eventually } from '../../../ops/deadline.ts'
import { createFrameStream } from '../../../transport/frames.ts'
import type { GodwitError } from '../../../wire/errors.ts'
import { encodeFrame } from '../../../wire/frame.ts'
import { toJson } from '../../../wire/schema.ts'
import { allow, FRAME, type FrameName } from '../../../wire/types.ts'
import { FIRST_RANGE, type VersionRange, type Versions } from '../../../wire/versions.ts'
import { assert, suite, thrown } from '../../support/suite.ts'
import { identityOf, vm, type World, world } from '../fixture.ts'

const test = suite('gateway: versions', { ms: 15_000 })
const range = (min: number, max: number): VersionRange => ({ min, max })
const link = (min: number, max: number): Versions => ({ link: range(min, max), migration: FIRST_RANGE })
const migration = (min: number, max: number): Versions => ({ link: FIRST_RANGE, migration: range(min, max) })

/** What a node of these versions sends and reads in its first two frames, while it connects to this gateway. */
async function firstFrames(w: World, versions: Versions): Promise<{ hello: Record<string, unknown>; challenge: Record<string, unknown> }> {
  const seen: Buffer[] = []
  const keep = (bytes: Uint8Array | null) => {
    if (bytes && seen.length < 2) seen.push(Buffer.from(bytes))
    return bytes
  }
  const node = await w.node('a', {
    versions,
    dial: async options => {
      const dialled = await w.dial(options)
      const openStream = async () => {
        const stream = await dialled.connection.openStream()
        const write = (bytes: Uint8Array) => stream.write(keep(bytes)!)
        return { ...stream, write, read: async () => keep(await stream.read()) }
      }
      return { ...dialled, connection: { ...dialled.connection, openStream } }
    },
  })
  assert.is(node.link.state, 'online')
  await node.link.close()
  const [hello, challenge] = seen.map(bytes => JSON.parse(bytes.subarray(5).toString()) as Record<string, unknown>)
  return { hello: hello!, challenge: challenge! }
}

for (const [what, node, gateway, version] of [
  ['an old node and a new gateway', link(1, 1), link(1, 2), 1],
  ['a new node and an old gateway', link(1, 2), link(1, 1), 1],
  ['two new ones', link(1, 2), link(1, 2), 2],
  ['a newer node and a new gateway', link(2, 3), link(1, 2), 2],
  ['a new node and a newer gateway', link(1, 2), link(2, 3), 2],
] as const) {
  test(`${what} use link version ${version}, which both have signed`, async () => {
    await using w = await world({ versions: gateway })
    const { hello, challenge } = await firstFrames(w, node)
    assert.is(challenge['version'], version)
    assert.equal([hello['version'], hello['versionMax']], [node.link.min, node.link.max === 1 ? undefined : node.link.max])
  })
}

/** The error with which a node of these versions cannot connect. */
async function refusal(w: World, versions: Versions): Promise<GodwitError> {
  return (await thrown(() => w.node('a', { versions }))) as GodwitError
}

test('a node and a gateway without a common version: the code, both ranges, and whom to upgrade', async () => {
  await using old = await world({ versions: link(1, 1) })
  const newer = await refusal(old, link(2, 3))
  assert.is(newer.code, 'VERSION_UNSUPPORTED')
  assert.match(newer.message, /no common link version: the node supports 2 to 3, the gateway supports 1; upgrade the gateway$/)
  await using later = await world({ versions: link(3, 4) })
  const older = await refusal(later, link(1, 2))
  assert.is(older.code, 'VERSION_UNSUPPORTED')
  assert.match(older.message, /the node supports 1 to 2, the gateway supports 3 to 4; upgrade the node$/)
})

/** What the gateway answers to a first frame. */
async function answerTo(w: World, name: FrameName, value: unknown): Promise<{ type: number; body: Record<string, unknown> }> {
  const { connection } = await w.dial({ signal: new AbortController().signal })
  const frames = createFrameStream(await connection.openStream())
  await frames.stream.write(encodeFrame(FRAME[name], toJson(value)))
  const answer = await frames.next(allow('ERROR', 'CHALLENGE'))
  await connection.close()
  return { type: answer!.type, body: JSON.parse(new TextDecoder().decode(answer!.payload)) }
}
const codeOf = async (...args: Parameters<typeof answerTo>) => (await answerTo(...args)).body['code']
const nonce = Buffer.alloc(32).toString('base64')

test('a HELLO of a later version is refused by its version, not by its shape', async () => {
  await using w = await world()
  assert.is(await codeOf(w, 'HELLO', { version: 2, proof: 'of another kind' }), 'VERSION_UNSUPPORTED')
  assert.is(await codeOf(w, 'ENROL_HELLO', { version: 2, versionMax: 3 }), 'VERSION_UNSUPPORTED')
})

test('garbage in the range is malformed', async () => {
  await using w = await world()
  const certificate = Buffer.from(identityOf(w.root, 'site', 'a').certificate).toString('base64')
  const hello = { version: 1, purpose: 'control', incarnation: 1, nonce, certificate }
  for (const wrong of [{ version: '1' }, { version: 0 }, { version: 2, versionMax: 1 }, { versionMax: 'all' }, { versionMax: 1e9 }]) {
    assert.is(await codeOf(w, 'HELLO', { ...hello, ...wrong }), 'FRAME_MALFORMED', JSON.stringify(wrong))
    assert.is(await codeOf(w, 'ENROL_HELLO', { version: 1, nonce, ...wrong }), 'FRAME_MALFORMED', JSON.stringify(wrong))
  }
  const { type, body } = await answerTo(w, 'HELLO', { ...hello, versionMax: 9, later: 'field' })
  assert.equal([type, body['version']], [FRAME.CHALLENGE, 1])
  assert.is((await answerTo(w, 'ENROL_HELLO', { version: 1, versionMax: 9, nonce, later: 1 })).type, FRAME.CHALLENGE)
})

/** Replaces a text in what comes from the gateway, by one of the same length. */
const altering =
  (w: World, from: string, to: string): World['dial'] =>
  async options => {
    const dialled = await w.dial(options)
    const openStream = async () => {
      const stream = await dialled.connection.openStream()
      const read = async () => {
        const bytes = await stream.read()
        return bytes && Buffer.from(Buffer.from(bytes).toString('latin1').replace(from, to), 'latin1')
      }
      return { ...stream, read }
    }
    return { ...dialled, connection: { ...dialled.connection, openStream } }
  }

test('a version that was changed on its way from the gateway is noticed', async () => {
  await using w = await world({ versions: link(1, 2) })
  const node = w.node('a', { versions: link(1, 2), dial: altering(w, '"version":2', '"version":1') })
  assert.is(((await thrown(() => node)) as GodwitError).code, 'AUTH_FAILED')
})

const begin = (w: World) => w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })

for (const [what, source, target, gateway, version] of [
  ['an old source and a new target', migration(1, 1), migration(1, 2), migration(1, 2), 1],
  ['a new source and an old target', migration(1, 2), migration(1, 1), migration(1, 2), 1],
  ['two new sites of an old gateway', migration(1, 2), migration(1, 2), migration(1, 1), 1],
  ['two new sites of a new gateway', migration(1, 2), migration(1, 2), migration(1, 2), 2],
  ['a newer and a new site', migration(2, 3), migration(1, 2), migration(1, 3), 2],
] as const) {
  test(`${what} migrate with version ${version}`, async () => {
    await using w = await world({ versions: gateway })
    const a = await w.node('a', { vms: [vm('vm-1')], versions: source })
    const b = await w.node('b', { versions: target })
    await begin(w)
    await eventually(() => a.started[0], { ms: 5_000, what: 'start' })
    assert.equal([a.started[0]!.plan.version, b.prepared[0]!.plan.version], [version, version])
  })
}

test('two sites without a common version: nothing begins, and the error names both and whom to upgrade', async () => {
  await using w = await world({ versions: migration(1, 3) })
  const a = await w.node('a', { vms: [vm('vm-1')], versions: migration(2, 3) })
  const b = await w.node('b', { versions: migration(1, 1) })
  const error = (await thrown(() => begin(w))) as GodwitError
  assert.is(error.code, 'VERSION_UNSUPPORTED')
  assert.match(error.message, /site a supports 2 to 3, site b supports 1, the gateway supports 1 to 3; upgrade site b$/)
  assert.equal([a.started.length, b.prepared.length], [0, 0])
  assert.equal((await w.api<{ migrations: unknown[] }>('GET', '/v1/migrations')).migrations, [])
})

test('a node refuses a plan of a version that it does not have, before it reads the shape', async () => {
  await using w = await world()
  await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b', { dial: altering(w, '"plan":{"version":2,"migrationId"', '"plan":{"version":7,"elsewhere!!"') })
  const { migrationId } = await begin(w)
  const { error } = await w.until(migrationId, ({ outcome }) => outcome !== null)
  assert.is(error?.code, 'VERSION_UNSUPPORTED')
  assert.is(error?.message, 'the gateway uses migration version 7, site b supports 1 to 2; upgrade site b')
  assert.equal(b.prepared, [])
})

test.run()
