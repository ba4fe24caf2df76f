import { createServer } from 'node:net'
import { findForward, forwardedPort, serviceNetdev } from '../../../edge-node/vm/forward.ts'
import { findAcceptQueue, GuestDoor } from '../../../edge-node/vm/guest-door.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('edge-node/vm: ways into a guest')

// As QEMU 10 prints it.
const USERNET = [
  'Hub -1 (net0):',
  '  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ',
  '  TCP[ESTABLISHED]   14      10.0.2.15    80      127.0.0.1 50000     0     0',
  '  TCP[HOST_FORWARD]  12       127.0.0.1 42079       10.0.2.15    80     0     0',
  'Hub -1 (net1):',
  '  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ',
  '  TCP[HOST_FORWARD]  13       127.0.0.1 42080       10.0.2.15    81     0     0',
  '',
].join('\r\n')

test('the forward is found by its netdev and port', () => {
  assert.equal(
    [findForward(USERNET, 'net0', 80), findForward(USERNET, 'net1', 81), findForward(USERNET, 'net0', 81), findForward('', 'net0', 80)],
    [42079, 42080, undefined, undefined],
  )
})

test('a forward is made once, and one that cannot be made is QEMU’s own words', async () => {
  const said: string[] = []
  let isMade = false
  const commands = {
    async humanMonitor(line: string) {
      said.push(line)
      if (line.startsWith('hostfwd_add')) isMade = true
      return line === 'info usernet' && isMade ? USERNET : ''
    },
  }
  assert.equal([await forwardedPort(commands, 'net0', 80), await forwardedPort(commands, 'net0', 80)], [42079, 42079])
  assert.equal(said, ['info usernet', 'hostfwd_add net0 tcp:127.0.0.1:0-:80', 'info usernet', 'info usernet'])
  const refusing = { humanMonitor: async (line: string) => (line.startsWith('host') ? 'could not set up host forwarding rule\r\n' : '') }
  let message = ''
  await forwardedPort(refusing, 'net0', 80).catch(error => (message = `${error.code} ${error.message}`))
  assert.match(message, /QEMU_COMMAND .*could not set up/)
})

test('services go by the first user NIC', () => {
  const spec = (nics: string) => parseSpec(`name: x\nmemory: 64MiB\nkernel: k\nnics: ${nics}\n`)
  assert.is(serviceNetdev(spec('[{type: none}, {type: user}, {type: user}]')), 'net1')
  assert.is(serviceNetdev(spec('[]')), undefined)
})

test('how many wait at a listening socket is read from the kernel', () => {
  const text = [
    '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode',
    '   0: 0100007F:1F90 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0',
    '   1: 0100007F:1F91 0100007F:1F90 01 00000000:00000007 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1',
    '',
  ].join('\n')
  assert.equal([findAcceptQueue(text, 8080), findAcceptQueue(text, 8081), findAcceptQueue(text, 80)], [2, undefined, undefined])
  assert.equal(
    [findAcceptQueue(text, 8080, 0), findAcceptQueue(text, 8080, 70_001)],
    [2, undefined],
    "another user's socket is none of ours",
  )
})

test('a port that another user listens at is not entered, whatever QEMU reports', async () => {
  const server = createServer(socket => socket.on('error', () => {}).end('the door of somebody else'))
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const mine = process.getuid!()
  const socket = await new GuestDoor({ port, epoch: 1, uid: mine }).connect()
  socket.destroy()
  assert.is(await codeOf(() => new GuestDoor({ port, epoch: 1, uid: mine + 70_001 }).connect()), 'CONNECT_FAILED')
  await new Promise(resolve => server.close(resolve))
})

test('connections go in one after the other, each when the one before was let in', async () => {
  const server = createServer(socket => socket.on('error', () => {}).end('in'))
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const looks: number[] = [0, 1, 1, 0, 1, 0]
  const door = new GuestDoor({ port, epoch: 3, queueOf: () => looks.shift() })
  const sockets = await Promise.all([door.connect(), door.connect(), door.connect()])
  assert.equal(looks, [])
  for (const socket of sockets) socket.destroy()
  assert.is(await codeOf(() => door.connect()), 'CONNECT_FAILED', 'nobody listens any more')
  const real = await new GuestDoor({ port, epoch: 3 }).connect()
  real.destroy()
  await new Promise(resolve => server.close(resolve))
  assert.is(await codeOf(() => new GuestDoor({ port, epoch: 3 }).connect()), 'CONNECT_FAILED')
})

test('each epoch comes from ports of its own, also where some are taken', async () => {
  const server = createServer(socket => socket.on('error', () => {}).resume())
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const from = async (epoch: number) => {
    const door = new GuestDoor({ port, epoch })
    return await Promise.all([door.connect(), door.connect()])
  }
  const sockets = [...(await from(1)), ...(await from(1)), ...(await from(2)), ...(await from(17))]
  const ports = sockets.map(({ localPort }) => localPort ?? 0)
  const range = (one: number) => Math.floor((one - 16_384) / 1024)
  assert.equal(ports.map(range), [1, 1, 1, 1, 2, 2, 1, 1])
  assert.is(new Set(ports).size, ports.length)
  for (const socket of sockets) socket.destroy()
  await new Promise(resolve => server.close(resolve))
})

test('a QEMU that takes nobody fails all who wait, each by its own deadline', async () => {
  const door = new GuestDoor({ port: 1, epoch: 1, queueOf: () => 1 })
  const beganMs = performance.now()
  const codes = await Promise.all([1, 2, 3].map(() => codeOf(() => door.connect())))
  assert.equal(codes, ['CONNECT_FAILED', 'CONNECT_FAILED', 'CONNECT_FAILED'])
  assert.ok(performance.now() - beganMs < 5_000, 'the deadlines ran side by side')
})

test.run()
