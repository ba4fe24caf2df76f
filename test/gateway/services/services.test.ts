import { connect, type Socket } from 'node:net'
import { homeOf } from '../../../gateway/handoff/home.ts'
import { siteForUser } from '../../../gateway/services/place.ts'
import { SERVICE_CONNECTIONS_PER_ADDRESS } from '../../../gateway/services/service.ts'
import { eventually, within } from '../../../ops/deadline.ts'
import { requestText } from '../../../ops/http-client.ts'
import type { FrameStream } from '../../../transport/frames.ts'
import type { ServiceView, VmView } from '../../../wire/admin.ts'
import type { ServiceRequest } from '../../../wire/control.ts'
import { type ErrorCode, GodwitError } from '../../../wire/errors.ts'
import { toJson } from '../../../wire/schema.ts'
import { FRAME } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { TOKEN, vm, type World, world } from '../fixture.ts'

const test = suite('gateway/services')

const SERVICE = { vm: 'vm-1', service: 'http', listen: { host: '127.0.0.1', port: 0 } }
const web = (epoch: number, more = {}) => vm('vm-1', { epoch, services: ['http'], ...more })

/** A node that answers each service stream as `answer` says. */
type Answer = (request: ServiceRequest, frames: FrameStream) => Promise<void>
const served = (answer: Answer) => ({
  onServiceStream: (request: ServiceRequest, frames: FrameStream) => void answer(request, frames).catch(() => {}),
})

const refuse =
  (code: ErrorCode): Answer =>
  async (_, frames) => {
    await frames.write(FRAME.ERROR, toJson(new GodwitError(code)))
    await frames.stream.end()
  }

/** Says yes, then gives back whatever comes, with the site's name in front. */
const echo =
  (site: string, heard: string[] = []): Answer =>
  async (request, frames) => {
    await frames.write(FRAME.SERVICE, toJson(request))
    const stream = frames.rest()
    for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) {
      heard.push(Buffer.from(chunk).toString())
      await stream.write(Buffer.from(`${site}:${Buffer.from(chunk)}`))
    }
    await stream.end()
  }

async function addressOf(around: World): Promise<number> {
  const { services } = await around.api<{ services: ServiceView[] }>('GET', '/v1/services')
  return services[0]!.listen.port
}

/** One connection of a user: says `text`, ends its side, and gives all that it got; `cut` when it was reset. */
async function ask(port: number, text: string): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
  let got = ''
  socket.setEncoding('utf8').on('data', chunk => {
    got += chunk
  })
  const ended = new Promise<string>(resolve => {
    socket.once('end', () => resolve(got))
    socket.once('error', () => resolve('cut'))
  })
  socket.end(text)
  return await within(ended, { ms: 5_000, what: 'an answer' }).finally(() => socket.destroy())
}

const outcomes = async (around: World): Promise<string> =>
  (await requestText({ url: around.gateway.adminUrl, token: TOKEN, path: '/metrics' }))
    .match(/service_connections_total\{.*/g)
    ?.join('\n') ?? ''

test('a user reaches the service at the site that has the VM, whichever it is', async () => {
  await using around = await world({ services: [SERVICE] })
  const a = await around.node('a', { vms: [web(1)], ...served(echo('a')) })
  const b = await around.node('b', served(echo('b')))
  const port = await addressOf(around)
  assert.is(await ask(port, 'hello'), 'a:hello')
  a.vms = []
  a.announce()
  b.vms = [web(2)]
  b.announce()
  await eventually(async () => ((await ask(port, 'again')) === 'b:again' ? true : undefined), { ms: 2_000, what: 'the VM at b' })
  assert.match(await outcomes(around), /outcome="served"/)
})

test('a connection that comes between two sites waits, and what it said is heard once', async () => {
  await using around = await world({ services: [SERVICE] })
  const heard: string[] = []
  let asked = 0
  const stopped: Answer = async (request, frames) => {
    asked += 1
    await refuse('VM_STATE')(request, frames)
  }
  const a = await around.node('a', { vms: [web(1, { state: 'migrating' })], ...served(stopped) })
  const b = await around.node('b', served(echo('b', heard)))
  const port = await addressOf(around)
  const answers = Promise.all([ask(port, 'one'), ask(port, 'two')])
  await eventually(() => (asked >= 4 ? true : undefined), { ms: 3_000, what: 'site a to be asked again', everyMs: 5 })
  const { services } = await around.api<{ services: ServiceView[] }>('GET', '/v1/services')
  assert.equal([services[0]?.site, services[0]?.open, services[0]?.waiting], ['a', 2, 2])
  b.vms = [web(2)]
  b.announce()
  a.vms = []
  a.announce()
  assert.equal(await answers, ['b:one', 'b:two'])
  assert.equal(heard.toSorted(), ['one', 'two'])
})

test('what may have been heard by a guest is never said to another', async () => {
  await using around = await world({ services: [SERVICE] })
  const heard: string[] = []
  let asked = 0
  const breaking: Answer = async (_, frames) => {
    asked += 1
    heard.push(Buffer.from((await frames.rest().read()) ?? []).toString())
    frames.stream.reset('the node has died, perhaps after it had said yes')
  }
  await around.node('a', { vms: [web(1)], ...served(breaking) })
  assert.is(await ask(await addressOf(around), 'pay 5'), 'cut')
  assert.equal([asked, heard], [1, ['pay 5']])
})

test('a VM that is nowhere for too long ends the connection, with a code in the figures', async () => {
  for (const [vms, code] of [
    [[], 'VM_UNKNOWN'],
    [[web(1, { state: 'paused' })], 'VM_STATE'],
  ] as const) {
    await using around = await world({ services: [SERVICE], serviceWaitMs: 100 })
    await around.node('a', { vms: [...vms], ...served(echo('a')) })
    assert.is(await ask(await addressOf(around), 'hello'), 'cut')
    assert.match(await outcomes(around), new RegExp(`outcome="${code}"`))
  }
})

test('a service that the VM does not have, and a node that takes no services, are not waited for', async () => {
  await using around = await world({ services: [SERVICE], serviceWaitMs: 100 })
  await around.node('a', { vms: [vm('vm-1', { services: ['ssh'] })], ...served(echo('a')) })
  const port = await addressOf(around)
  const beganMs = performance.now()
  assert.is(await ask(port, 'hello'), 'cut')
  assert.ok(performance.now() - beganMs < 2_000)
  assert.match(await outcomes(around), /outcome="SERVICE_UNKNOWN"/)
  const old = await world({ services: [SERVICE], serviceWaitMs: 50 })
  await using _ = old
  await old.node('a', { vms: [web(1)] })
  assert.is(await ask(await addressOf(old), ''), 'cut')
})

test('no more than so many connections wait at once', async () => {
  await using around = await world({ services: [SERVICE], serviceWaitMs: 1_500 })
  const port = await addressOf(around)
  const all = Promise.all(Array.from({ length: 260 }, () => ask(port, 'x')))
  assert.ok((await all).every(answer => answer === 'cut'))
  const text = await outcomes(around)
  assert.match(text, /outcome="LIMIT_EXCEEDED"\} 4/)
  assert.match(text, /outcome="VM_UNKNOWN"\} 256/)
})

test('a guest that does not read holds its user back, and the gateway holds next to nothing', async () => {
  await using around = await world({ services: [SERVICE] })
  const go = Promise.withResolvers<void>()
  let read = 0
  const slow: Answer = async (request, frames) => {
    await frames.write(FRAME.SERVICE, toJson(request))
    await go.promise
    const stream = frames.rest()
    for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) read += chunk.length
    await stream.end()
  }
  await around.node('a', { vms: [web(1)], ...served(slow) })
  const socket = connect({ host: '127.0.0.1', port: await addressOf(around), allowHalfOpen: true })
  const bytes = 64 * 1024 * 1024
  const sent = send(socket, bytes)
  const stuckAt = await settled(() => socket.bytesWritten - socket.writableLength)
  assert.ok(stuckAt < bytes / 2, `${stuckAt} bytes went towards a guest that reads nothing`)
  go.resolve()
  await within(sent, { ms: 10_000, what: 'the rest' })
  await within(new Promise(resolve => socket.once('end', resolve).resume()), { ms: 5_000, what: 'the end' })
  assert.is(read, bytes)
  socket.destroy()
})

async function send(socket: Socket, bytes: number): Promise<void> {
  const chunk = Buffer.alloc(256 * 1024, 7)
  for (let done = 0; done < bytes; done += chunk.length)
    if (!socket.write(chunk)) await new Promise(resolve => socket.once('drain', resolve))
  socket.end()
}

/** A figure once it has stopped to grow. */
async function settled(figure: () => number): Promise<number> {
  let last = -1
  return await eventually(
    () => {
      const now = figure()
      const isSame = now === last && now > 0
      last = now
      return isSame ? now : undefined
    },
    { ms: 5_000, what: 'a figure that stands still', everyMs: 200 },
  )
}

test('a gateway that shuts down ends its users, and an address that is taken stops it from starting', async () => {
  const around = await world({ services: [SERVICE] })
  await around.node('a', { vms: [web(1)], ...served(echo('a')) })
  const port = await addressOf(around)
  const socket = connect({ host: '127.0.0.1', port })
  const over = new Promise(resolve => socket.once('close', resolve).once('error', () => {}))
  socket.write('x')
  await new Promise(resolve => socket.once('data', resolve))
  const taken = { ...SERVICE, listen: { host: '127.0.0.1', port } }
  assert.is(await codeOf(() => world({ services: [taken] })), 'CONFIG_INVALID')
  await around[Symbol.asyncDispose]()
  await within(over, { ms: 2_000, what: 'the end of the connection' })
})

test('a service is reached where its VM lives, if it runs there', () => {
  const at = (site: string, epoch: number, more: Partial<VmView> = {}): VmView => ({ ...web(epoch), site, online: true, ...more })
  const place = (...views: VmView[]) => {
    const found = siteForUser('http', homeOf('vm-1', views, undefined))
    return found.site ?? found.error.code
  }
  assert.is(place(at('a', 1)), 'a')
  assert.is(place(at('a', 1, { state: 'migrating' })), 'a')
  assert.is(place(at('b', 0, { state: 'incoming' })), 'MIGRATION_BUSY')
  assert.is(place(at('b', 2, { online: false })), 'SITE_OFFLINE')
  assert.is(place(at('a', 1, { state: 'stopped' })), 'VM_STATE')
  assert.is(place(at('a', 1, { services: [] })), 'SERVICE_UNKNOWN')
  assert.is(place(at('a', 1, { name: 'vm-2' })), 'VM_UNKNOWN')
})

test('one address that holds as many connections as it can leaves places for users from others', async () => {
  await using around = await world({ services: [SERVICE] })
  await around.node('a', { vms: [web(1)], ...served(echo('a')) })
  const port = await addressOf(around)
  let refused = 0
  const sockets: Socket[] = []
  const connectOne = async () => {
    const socket = connect({ host: '127.0.0.1', port, localAddress: '127.0.0.2' })
    sockets.push(socket)
    socket.on('error', () => {})
    socket.once('close', () => {
      refused += 1
    })
    await new Promise(resolve => socket.once('connect', resolve).once('close', resolve))
  }
  // Not all at once: more than the listener's backlog (511) would wait for retransmitted SYNs, up to 15 s.
  while (sockets.length < 1100) await Promise.all(Array.from({ length: 100 }, connectOne))
  try {
    await eventually(() => (refused >= 1100 - SERVICE_CONNECTIONS_PER_ADDRESS ? true : undefined), { ms: 15_000, what: 'refusals' })
    assert.is(await ask(port, 'hello'), 'a:hello')
    assert.match(await outcomes(around), /outcome="LIMIT_EXCEEDED"\} \d+/)
  } finally {
    for (const socket of sockets) socket.destroy()
  }
})

test.run()
