import { createServer, type Server, type Socket } from 'node:net'
import type { Registry } from '../../edge-node/registry/registry.ts'
import { createServices } from '../../edge-node/services.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { within } from '../../ops/deadline.ts'
import { createFrameStream } from '../../transport/frames.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { streamPair } from '../support/pipe.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('edge-node: services')

const SPEC = parseSpec('name: vm-1\nmemory: 64MiB\nkernel: k\nnics: [{type: user}]\nservices: [{name: http, port: 80}]\n')

/** A site with one VM whose guest is a server of this process, behind a forward as QEMU would tell it. */
async function site(serve: (server: Server) => void) {
  const server = createServer({ allowHalfOpen: true })
  const sockets = new Set<Socket>()
  server.on('connection', socket => void sockets.add(socket))
  serve(server)
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const state = { runs: true, commands: 0 }
  const usernet = `Hub -1 (net0):\r\n  TCP[HOST_FORWARD]  12       127.0.0.1 ${port}       10.0.2.15    80     0     0\r\n`
  const commands = {
    async humanMonitor() {
      state.commands += 1
      return usernet
    },
  }
  const machine = { name: 'vm-1', commands, user: () => undefined }
  const registry = {
    list: () => [{ name: 'vm-1' }],
    runs: (name: string) => name === 'vm-1' && state.runs,
    spec(name: string) {
      if (name !== 'vm-1') throw new GodwitError('VM_UNKNOWN')
      return SPEC
    },
    machine: () => machine,
    get: () => ({ epoch: 1 }),
    onChange: () => () => {},
  } as unknown as Registry
  const services = createServices({ registry, log: silentLog })
  const ask = (request = { vm: 'vm-1', service: 'http' }) => {
    const [gateway, node] = streamPair()
    void services.onServiceStream(request, createFrameStream(node))
    return { gateway, frames: createFrameStream(gateway) }
  }
  return {
    state,
    ask,
    /** The code of the refusal, or 'yes'. */
    async answer(request?: { vm: string; service: string }) {
      const frame = await within(ask(request).frames.next(allow('SERVICE', 'ERROR')), { ms: 5_000, what: 'an answer' })
      return frame?.type === FRAME.SERVICE ? 'yes' : JSON.parse(Buffer.from(frame!.payload).toString()).code
    },
    [Symbol.asyncDispose]: () => {
      for (const socket of sockets) socket.destroy()
      return new Promise<void>(resolve => server.close(() => resolve()))
    },
  }
}

async function readAll(stream: Stream): Promise<string> {
  let text = ''
  for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) text += Buffer.from(chunk)
  return text
}

const echo = (server: Server) => server.on('connection', socket => socket.on('error', () => {}).pipe(socket))

test('a user and a guest say to each other what they like, each to its own end', async () => {
  await using at = await site(echo)
  const { gateway, frames } = at.ask()
  await gateway.write(Buffer.from('before the answer, '))
  assert.is((await frames.next(allow('SERVICE')))?.type, FRAME.SERVICE)
  await gateway.write(Buffer.from('and after it'))
  await gateway.end()
  assert.is(await within(readAll(frames.rest()), { ms: 5_000, what: 'the echo' }), 'before the answer, and after it')
  assert.is(at.state.commands, 1, 'the way into the guest is found once')
})

test('only a guest that runs here is answered for, and only by the names of its services', async () => {
  await using at = await site(echo)
  assert.is(await at.answer(), 'yes')
  assert.is(await at.answer({ vm: 'vm-1', service: 'ssh' }), 'SERVICE_UNKNOWN')
  assert.is(await at.answer({ vm: 'vm-2', service: 'http' }), 'VM_UNKNOWN')
  at.state.runs = false
  assert.is(await at.answer(), 'VM_STATE')
})

test('a guest that is stopped while its user comes in hears nothing of the user', async () => {
  let heard = 0
  await using at = await site(server => server.on('connection', socket => socket.on('error', () => {}).on('data', () => heard++)))
  let looks = 0
  Object.defineProperty(at.state, 'runs', { get: () => ++looks < 2 })
  const { gateway, frames } = at.ask()
  await gateway.write(Buffer.from('pay 5'))
  const frame = await within(frames.next(allow('SERVICE', 'ERROR')), { ms: 5_000, what: 'an answer' })
  assert.match(Buffer.from(frame!.payload).toString(), 'VM_STATE')
  assert.is(heard, 0)
})

test('a connection that the guest breaks is broken for the user too', async () => {
  await using at = await site(server => server.on('connection', socket => socket.once('data', () => socket.resetAndDestroy())))
  const { gateway, frames } = at.ask()
  await gateway.write(Buffer.from('x'))
  await frames.next(allow('SERVICE'))
  const broken = await within(
    readAll(frames.rest()).then(
      () => 'ended',
      error => error.code,
    ),
    { ms: 5_000, what: 'the break' },
  )
  assert.is(broken, 'STREAM_RESET')
})

test.run()
