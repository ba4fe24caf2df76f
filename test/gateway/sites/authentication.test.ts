// Who is let in: every way of being wrong has its code, on both sides, and a man in the middle is noticed.
import { randomBytes } from 'node:crypto'
import { createRoot, decodeCertificate, issueRevocations, verifyRevocations } from '../../../crypto/certificate.ts'
import { generateSiteKeys } from '../../../crypto/identity.ts'
import { connectLink, type Dial, type LinkOptions } from '../../../edge-node/link/link.ts'
import { eventually, sleep } from '../../../ops/deadline.ts'
import { createLog } from '../../../ops/log.ts'
import { createFrameStream } from '../../../transport/frames.ts'
import type { Connection, Stream } from '../../../transport/types.ts'
import type { SiteView } from '../../../wire/admin.ts'
import { encodeFrame } from '../../../wire/frame.ts'
import { silentLog } from '../../../wire/log.ts'
import { toJson } from '../../../wire/schema.ts'
import { allow, FRAME, type FrameName } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { dialTo, identityOf, NOW_SECONDS, type World, world } from '../fixture.ts'

const test = suite('gateway: authentication', { ms: 15_000 })

/** The code with which a node with these options is turned away (or turns the gateway away). */
async function refusal(w: World, more: Partial<LinkOptions>): Promise<string> {
  const link = connectLink({
    dial: w.dial,
    identity: identityOf(w.root, 'site', 'a'),
    rootPublic: w.root.signPublic,
    site: 'a',
    version: 'test',
    describe: async () => ({ host: { accelerators: [], memoryFreeBytes: 0, diskFreeBytes: 0, vcpus: 1 }, vms: [], migrations: [] }),
    handlers: { prepare: async () => {}, start: async () => {}, cancel: async () => {} },
    onRelayStream: () => {},
    log: silentLog,
    ...more,
  })
  try {
    return await codeOf(() => link.whenOnline({ timeoutMs: 5_000 }))
  } finally {
    await link.close()
  }
}

test('turns away certificates of another root, out of time, of another role, of other keys', async () => {
  await using w = await world()
  const stranger = createRoot()
  assert.is(await refusal(w, { identity: identityOf(stranger, 'site', 'a') }), 'CERT_UNTRUSTED')
  assert.is(await refusal(w, { identity: identityOf(w.root, 'site', 'a', { notAfter: NOW_SECONDS - 10 }) }), 'CERT_EXPIRED')
  assert.is(await refusal(w, { identity: identityOf(w.root, 'site', 'a', { notBefore: NOW_SECONDS + 1000 }) }), 'CERT_EXPIRED')
  assert.is(await refusal(w, { identity: identityOf(w.root, 'gateway', 'a') }), 'AUTH_FAILED')
  assert.is(await refusal(w, { identity: { ...identityOf(w.root, 'site', 'a'), keys: generateSiteKeys() } }), 'AUTH_FAILED')
  assert.is(await refusal(w, { identity: { ...identityOf(w.root, 'site', 'a'), certificate: randomBytes(100) } }), 'CERT_MALFORMED')
  assert.match(await w.api<string>('GET', '/v1/status').then(status => JSON.stringify(status)), '"sites":[]')
})

test('a node turns away a gateway of another root, another name, or of the wrong role', async () => {
  await using w = await world()
  assert.is(await refusal(w, { rootPublic: createRoot().signPublic }), 'CERT_UNTRUSTED')
  assert.is(await refusal(w, { gatewayId: 'another' }), 'AUTH_FAILED')
  await using impostor = await world({ identity: identityOf(w.root, 'site', 'gw'), rootPublic: w.root.signPublic })
  assert.is(await refusal(w, { dial: impostor.dial }), 'AUTH_FAILED')
})

test('a node turns away a gateway whose certificate the root has revoked', async () => {
  await using w = await world()
  const gateway = identityOf(w.root, 'gateway', 'gw')
  await using revoked = await world({ identity: gateway, rootPublic: w.root.signPublic })
  const { serial } = decodeCertificate(gateway.certificate)
  const list = issueRevocations(w.root, { number: 1, issuedAt: NOW_SECONDS, serials: [serial] })
  const revocations = verifyRevocations(list, { rootPublic: w.root.signPublic, now: NOW_SECONDS, maxAgeSeconds: 3600 })
  assert.is(await refusal(w, { dial: revoked.dial, revocations: () => revocations }), 'CERT_REVOKED')
})

/**
 * Ends the node's connection and opens one of its own to the gateway, handing every byte on: what TLS interception
 * does.
 */
async function interceptor(w: World): Promise<{ port: number; bytes: Uint8Array[] }> {
  const listener = await w.engine.listen({ host: '127.0.0.1', port: 0 })
  const bytes: Uint8Array[] = []
  const pump = async (from: Stream, to: Stream) => {
    for (let chunk = await from.read(); chunk; chunk = await from.read()) {
      bytes.push(chunk)
      await to.write(chunk)
    }
    await to.end()
  }
  const serve = async (inner: Connection) => {
    const outer = await w.engine.connect({ host: '127.0.0.1', port: w.port })
    for (let stream = await inner.acceptStream(); stream; stream = await inner.acceptStream()) {
      const on = await outer.openStream()
      pump(stream, on).catch(() => {})
      pump(on, stream).catch(() => {})
    }
  }
  ;(async () => {
    for (let connection = await listener.accept(); connection; connection = await listener.accept()) serve(connection).catch(() => {})
  })()
  return { port: listener.address.port, bytes }
}

test('a man in the middle who hands every byte on is noticed by the channel binding', async () => {
  await using w = await world()
  const middle = await interceptor(w)
  assert.is(await refusal(w, { dial: dialTo(w.engine, middle.port) }), 'AUTH_FAILED')
  assert.ok(middle.bytes.length >= 2, 'HELLO and CHALLENGE went through it')
})

test('a recorded authentication is worthless on another connection', async () => {
  await using w = await world()
  // A node talks to the gateway while its bytes are recorded at the node itself: the best recording there can be.
  const recorded: Uint8Array[] = []
  const node = await w.node('a', {
    dial: async options => {
      const dialled = await w.dial(options)
      const openStream = async () => {
        const stream = await dialled.connection.openStream()
        const write = (bytes: Uint8Array) => {
          recorded.push(bytes.slice())
          return stream.write(bytes)
        }
        return { ...stream, write }
      }
      return { ...dialled, connection: { ...dialled.connection, openStream } }
    },
  })
  await node.link.close()
  const { connection } = await w.dial({ signal: new AbortController().signal })
  const frames = createFrameStream(await connection.openStream())
  await frames.stream.write(recorded[0] ?? new Uint8Array())
  assert.ok(await frames.next(allow('CHALLENGE')))
  await frames.stream.write(recorded[1] ?? new Uint8Array())
  const answer = await frames.next(allow('ERROR', 'WELCOME'))
  assert.is(answer?.type, FRAME.ERROR)
  assert.is(JSON.parse(new TextDecoder().decode(answer?.payload)).code, 'AUTH_FAILED')
})

test('whatever a stranger says first, it gets a coded error and the gateway lives', async () => {
  await using w = await world()
  const good = await w.node('good')
  const say = async (bytes: Uint8Array) => {
    const { connection } = await w.dial({ signal: new AbortController().signal })
    const stream = await connection.openStream()
    await stream.write(bytes)
    await stream.end()
    const answer = await createFrameStream(stream).next(allow('ERROR'))
    await connection.close()
    return JSON.parse(new TextDecoder().decode(answer?.payload)).code
  }
  const frame = (name: FrameName, value: unknown) => encodeFrame(FRAME[name], toJson(value))
  assert.is(await say(frame('HELLO', {})), 'FRAME_MALFORMED')
  assert.is(await say(frame('JOIN', {})), 'FRAME_TYPE')
  assert.is(await say(frame('RPC', { id: 1, method: 'site.state', params: {} })), 'FRAME_TYPE')
  assert.is(await say(frame('ENROL', { token: 'x', request: 'AAAA' })), 'FRAME_TYPE', 'no token before the gateway has proved itself')
  assert.is(await say(frame('ENROL_HELLO', { version: 99, nonce: Buffer.alloc(32).toString('base64') })), 'VERSION_UNSUPPORTED')
  assert.is(await say(new Uint8Array([0xff, 0xff, 0xff, 0xff, 1])), 'FRAME_TOO_LARGE')
  assert.is(await say(new Uint8Array([0, 0, 0, 1])), 'FRAME_TRUNCATED')
  const hello = { version: 99, purpose: 'control', incarnation: 1, nonce: Buffer.alloc(32).toString('base64'), certificate: 'AAAA' }
  assert.is(await say(frame('HELLO', hello)), 'VERSION_UNSUPPORTED')
  assert.is(good.link.state, 'online')
})

test('a later process of a site replaces an earlier one, never the other way round', async () => {
  await using w = await world()
  const keys = identityOf(w.root, 'site', 'a')
  const first = await w.node('a', { identity: keys, incarnation: 10 })
  assert.is(await refusal(w, { identity: keys, incarnation: 9 }), 'SITE_DUPLICATE')
  assert.is(first.link.state, 'online')
  const second = await w.node('a', { identity: keys, incarnation: 11 })
  await eventually(() => (first.link.stats().lastError?.code === 'SITE_DUPLICATE' ? true : undefined), {
    ms: 5_000,
    what: 'the first is out',
  })
  assert.is(second.link.state, 'online')
  await first.link.close()
})

test('data connections belong to the control link of their process', async () => {
  await using w = await world()
  const node = await w.node('a', { dataConnections: 2 })
  const sites = async () => (await w.api<{ sites: SiteView[] }>('GET', '/v1/sites')).sites[0]
  await eventually(async () => ((await sites())?.dataConnections === 2 ? true : undefined), { ms: 5_000, what: 'two data connections' })
  node.link.dataConnections(1)
  await eventually(async () => ((await sites())?.dataConnections === 1 ? true : undefined), { ms: 5_000, what: 'one data connection' })
  await node.link.close()
  await eventually(async () => ((await sites())?.online === false ? true : undefined), { ms: 5_000, what: 'offline' })
})

test('a node that starts is refused nothing, however late its control connection comes', async () => {
  const lines: string[] = []
  await using w = await world({ log: createLog({ level: 'warn', write: line => void lines.push(line) }) })
  let dialled = 0
  const dial: Dial = async options => {
    // The first is the control connection.
    if (dialled++ === 0) await sleep(150, options.signal)
    return await w.dial(options)
  }
  await w.node('a', { dataConnections: 2, dial })
  const sites = async () => (await w.api<{ sites: SiteView[] }>('GET', '/v1/sites')).sites[0]
  await eventually(async () => ((await sites())?.dataConnections === 2 ? true : undefined), { ms: 5_000, what: 'two data connections' })
  assert.equal([lines, dialled], [[], 3])
})

test('a node returns by itself after a lost connection, and after a gateway that hangs', async () => {
  await using w = await world({ heartbeat: { heartbeatMs: 20, silenceMs: 100_000 } })
  const node = await w.node('a', { heartbeat: { heartbeatMs: 20, silenceMs: 150 } })
  w.engine.sever()
  await eventually(() => (node.link.stats().attempts >= 2 ? true : undefined), { ms: 5_000, what: 'the second attempt' })
  await node.link.whenOnline({ timeoutMs: 5_000 })

  let hang = true
  const frozen = await w.node('b', {
    heartbeat: { heartbeatMs: 20, silenceMs: 150 },
    dial: async options => {
      const dialled = await w.dial(options)
      const openStream = async () => {
        const stream = await dialled.connection.openStream()
        let reads = 0
        // After its first words the gateway falls silent, though its connection stays.
        return { ...stream, read: () => (hang && ++reads > 4 ? new Promise<null>(() => {}) : stream.read()) }
      }
      return { ...dialled, connection: { ...dialled.connection, openStream } }
    },
  })
  await eventually(() => (frozen.link.stats().attempts >= 2 ? true : undefined), { ms: 5_000, what: 'the silence is noticed' })
  hang = false
  await frozen.link.whenOnline({ timeoutMs: 5_000 })
})

test.run()
