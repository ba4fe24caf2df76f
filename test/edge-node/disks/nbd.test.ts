// The NBD client: against a scripted server at every split of its bytes, against servers that break the protocol, and
// against the real qemu-nbd.

import { spawn, spawnSync } from 'node:child_process'
import { truncate, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { ALLOCATION_CONTEXT, bitmapContext, type NbdClient, openNbd } from '../../../edge-node/disks/nbd/client.ts'
import { ALLOCATION, type ReplyEvent, ReplyReader } from '../../../edge-node/disks/nbd/codec.ts'
import { connectUnix } from '../../../edge-node/qmp/socket.ts'
import { eventually } from '../../../ops/deadline.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/disks/nbd', { ms: 60_000 })
const noQemuNbd = ['qemu-nbd', 'qemu-img'].some(program => spawnSync(program, ['--version']).status !== 0) && 'qemu-utils is not installed'

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex')
const u64 = (value: number): string => value.toString(16).padStart(16, '0')
const u32 = (value: number): string => value.toString(16).padStart(8, '0')
const u16 = (value: number): string => value.toString(16).padStart(4, '0')
const chunk = (type: number, cookie: number, payload: string, done = 1): string =>
  `668e33ef${u16(done)}${u16(type)}${u64(cookie)}${u32(payload.replaceAll(' ', '').length / 2)}${payload}`

const REPLIES = [
  chunk(1, 7, `${u64(4096)}00112233445566778899`, 0),
  chunk(2, 7, `${u64(4106)}${u32(90)}`),
  chunk(5, 8, `${u32(3)}${u32(65536)}${u32(1)}${u32(1048576)}${u32(0)}`),
  chunk(0x8001, 9, `${u32(28)}${u16(4)}66756c6c`),
  `67446698${u32(0)}${u64(10)}`,
  `67446698${u32(5)}${u64(11)}`,
  chunk(0, 12, ''),
].join('')

/** Events of pieces; data of neighbouring pieces joined, as their cut is the network's. */
function eventsOf(pieces: Buffer[]): unknown[] {
  const reader = new ReplyReader()
  const events: ReplyEvent[] = []
  const onEvent = (event: ReplyEvent) => {
    const last = events.at(-1)
    if (event.type === 'data' && last?.type === 'data') last.bytes = Buffer.concat([last.bytes, event.bytes])
    else events.push(event.type === 'data' ? { ...event, bytes: Buffer.from(event.bytes) } : event)
  }
  for (const piece of pieces) reader.push(piece, onEvent)
  return events.map(event => (event.type === 'data' ? { ...event, bytes: event.bytes.toString('hex') } : event))
}

test('replies are read the same at every split', () => {
  const bytes = hex(REPLIES)
  const whole = eventsOf([bytes])
  assert.equal(whole, [
    { type: 'data', cookie: 7n, offset: 4096, bytes: '00112233445566778899' },
    { type: 'hole', cookie: 7n, offset: 4106, length: 90 },
    { type: 'done', cookie: 7n },
    {
      type: 'status',
      cookie: 8n,
      context: 3,
      extents: [
        { length: 65536, flags: 1 },
        { length: 1048576, flags: 0 },
      ],
    },
    { type: 'done', cookie: 8n },
    { type: 'error', cookie: 9n, errno: 28, text: 'full' },
    { type: 'done', cookie: 9n },
    { type: 'done', cookie: 10n },
    { type: 'error', cookie: 11n, errno: 5, text: '' },
    { type: 'done', cookie: 11n },
    { type: 'done', cookie: 12n },
  ])
  for (let at = 0; at <= bytes.length; at++) assert.equal(eventsOf([bytes.subarray(0, at), bytes.subarray(at)]), whole, `split at ${at}`)
  assert.equal(eventsOf([...bytes].map(byte => Buffer.of(byte))), whole, 'byte by byte')
})

test('replies with wrong lengths or types are refused', async () => {
  const wrong = {
    'no magic': `11111111${u32(0)}${u64(1)}${u32(0)}`,
    'data without a byte': chunk(1, 1, u64(0)),
    'data of 33 MiB': `668e33ef${u16(1)}${u16(1)}${u64(1)}${u32(33 * 1024 * 1024)}`,
    'a hole of another length': chunk(2, 1, `${u64(0)}${u32(1)}00`),
    'a status without a descriptor': chunk(5, 1, u32(3)),
    'half a descriptor': chunk(5, 1, `${u32(3)}${u32(1)}${u32(1)}${u32(1)}`),
    'a type that nobody knows': chunk(77, 1, ''),
    'an end that does not end': chunk(0, 1, '', 0),
    'an error with a longer text than it has': chunk(0x8001, 1, `${u32(5)}${u16(9)}6162`),
    'an offset beyond all disks': chunk(2, 1, `ffffffffffffffff${u32(1)}`),
  }
  for (const [what, text] of Object.entries(wrong)) assert.is(await codeOf(() => eventsOf([hex(text)])), 'NBD_PROTOCOL', what)
})

const GREETING = hex('4e42444d41474943 49484156454f5054 0003')
const optionReply = (option: number, type: number, data = ''): Buffer =>
  hex(`0003e889045565a9${u32(option)}${(type >>> 0).toString(16).padStart(8, '0')}${u32(data.length / 2)}${data}`)
const ACCEPTED = [GREETING, optionReply(8, 1), optionReply(7, 3, `0000${u64(1024 * 1024)}${u16(0x6d)}`), optionReply(7, 1)]

/** A server that writes `said` at once, then `then` to the first request. */
async function scripted(said: Buffer[], then: Buffer = Buffer.alloc(0)) {
  const folder = await tempFolder()
  const path = join(folder.path, 's')
  const sockets: Socket[] = []
  let heard = 0
  const server = createServer(socket => {
    sockets.push(socket)
    socket.on('error', () => {})
    socket.write(Buffer.concat(said))
    socket.on('data', piece => {
      heard += piece.length
      // The client's flags, two options (16, 16 + 4 + 1 + 4), and the first request.
      if (heard === 4 + 16 + 25 + 28) socket.write(then)
    })
  })
  await new Promise<void>(resolve => server.listen(path, resolve))
  const open = async (options: Partial<Parameters<typeof openNbd>[1]> = {}) =>
    openNbd(await connectUnix(path, 5_000), { export: 'd', ...options })
  const dispose = async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise(resolve => server.close(resolve))
    await folder[Symbol.asyncDispose]()
  }
  return { open, sockets, [Symbol.asyncDispose]: dispose }
}

test('a server that does not speak NBD, refuses, or ends, is told apart', async () => {
  const cases: [string, Buffer[], string][] = [
    ['no NBD', [Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')], 'NBD_PROTOCOL'],
    ['oldstyle', [hex('4e42444d41474943 00420281861253 00000000000000')], 'NBD_PROTOCOL'],
    ['no such export', [GREETING, optionReply(8, 1), optionReply(7, 0x80000006, '6e6f6e65')], 'NBD_REFUSED'],
    ['an answer to another option', [GREETING, optionReply(3, 1)], 'NBD_PROTOCOL'],
    ['a reply of a gigabyte', [GREETING, hex(`0003e889045565a9${u32(8)}${u32(1)}40000000`)], 'NBD_PROTOCOL'],
    ['no size', [GREETING, optionReply(8, 1), optionReply(7, 1)], 'NBD_PROTOCOL'],
  ]
  for (const [what, said, code] of cases) {
    await using server = await scripted(said)
    assert.is(await codeOf(() => server.open()), code, what)
  }
  await using server = await scripted([GREETING, optionReply(8, 1), optionReply(10, 1)])
  assert.is(await codeOf(() => server.open({ contexts: [ALLOCATION_CONTEXT] })), 'NBD_REFUSED', 'a context that is not there')
})

test('wrong answers, silence and an end fail what waits, and nothing waits for ever', async () => {
  const answers: [string, string, string][] = [
    ['another request', chunk(1, 9, `${u64(0)}00`), 'NBD_PROTOCOL'],
    ['data beyond the request', chunk(1, 1, `${u64(4)}00`), 'NBD_PROTOCOL'],
    ['less than the request', chunk(1, 1, `${u64(0)}00`), 'NBD_PROTOCOL'],
    ['a status nobody asked for', chunk(5, 1, `${u32(0)}${u32(1)}${u32(0)}`), 'NBD_PROTOCOL'],
    ['no space', chunk(0x8001, 1, `${u32(28)}${u16(0)}`), 'DISK_FULL'],
    ['a bad sector', chunk(0x8002, 1, `${u32(5)}${u16(0)}${u64(0)}`), 'DISK_IO'],
  ]
  for (const [what, answer, code] of answers) {
    await using server = await scripted(ACCEPTED, hex(answer))
    const client = await server.open()
    assert.is(await codeOf(() => client.read(0, new Uint8Array(4))), code, what)
    client.close()
  }
  await using silent = await scripted(ACCEPTED)
  const client = await silent.open({ requestMs: 50 })
  assert.is(await codeOf(() => client.read(0, new Uint8Array(4))), 'TIMEOUT')
  assert.is(await codeOf(() => client.read(0, new Uint8Array(4))), 'TIMEOUT', 'a client that has failed fails at once')
  const other = await silent.open()
  const reading = codeOf(() => other.read(0, new Uint8Array(4)))
  for (const socket of silent.sockets) socket.destroy()
  assert.is(await reading, 'NBD_CLOSED')
})

async function run(program: string, args: string[]): Promise<void> {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  let text = ''
  child.stderr.setEncoding('utf8').on('data', piece => {
    text += piece
  })
  const code = await new Promise(resolve => child.once('close', resolve))
  assert.is(code, 0, `${program}: ${text}`)
}

/** qemu-nbd over an image of 64 MiB. */
async function served(
  format: 'raw' | 'qcow2',
  body: (open: (contexts?: string[]) => Promise<NbdClient>, image: string) => Promise<void>,
  args: string[] = [],
) {
  await using folder = await tempFolder()
  const image = join(folder.path, 'disk')
  if (format === 'raw') {
    await writeFile(image, '')
    await truncate(image, 64 * 1024 * 1024)
  } else await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '64M'])
  if (args.includes('--bitmap=b0')) await run('qemu-img', ['bitmap', '--add', image, 'b0'])
  const path = join(folder.path, 's')
  const child = spawn('qemu-nbd', ['--persistent', `--socket=${path}`, `--format=${format}`, '--export-name=d', ...args, image], {
    stdio: 'ignore',
  })
  try {
    await eventually(
      () =>
        connectUnix(path, 1_000).then(
          socket => socket.destroy(),
          () => undefined,
        ),
      { ms: 20_000, what: 'qemu-nbd' },
    )
    await body(async contexts => openNbd(await connectUnix(path, 5_000), { export: 'd', ...(contexts && { contexts }) }), image)
  } finally {
    child.kill('SIGKILL')
  }
}

for (const format of ['raw', 'qcow2'] as const)
  test(
    `what is written to a ${format} image through qemu-nbd is read again, with its holes`,
    async () => {
      await served(format, async open => {
        const client = await open([ALLOCATION_CONTEXT])
        assert.is(client.sizeBytes, 64 * 1024 * 1024)
        assert.is(client.isReadOnly, false)
        const bytes = crypto.getRandomValues(new Uint8Array(65_536))
        await Promise.all([client.write(1024 * 1024, bytes), client.write(3 * 1024 * 1024, bytes)])
        await client.flush()
        const all = new Uint8Array(8 * 1024 * 1024).fill(7)
        await client.read(0, all)
        const expected = new Uint8Array(all.length)
        expected.set(bytes, 1024 * 1024)
        expected.set(bytes, 3 * 1024 * 1024)
        assert.is(Buffer.compare(all, expected), 0)
        const isData = async () =>
          (await client.status(ALLOCATION_CONTEXT, 0, client.sizeBytes)).map(({ length, flags }) => [
            length,
            (flags & ALLOCATION.ZERO) === 0,
          ])
        assert.equal(await isData(), [
          [MIB, false],
          [65_536, true],
          [2 * MIB - 65_536, false],
          [65_536, true],
          [61 * MIB - 65_536, false],
        ])
        await client.zero(MIB, 65_536)
        await client.read(MIB, bytes)
        assert.ok(bytes.every(byte => byte === 0))
        assert.is(await codeOf(() => client.read(64 * MIB - 1, new Uint8Array(2))), 'NBD_REFUSED')
        client.close()
      })
    },
    { skip: noQemuNbd },
  )

test(
  'a dirty bitmap tells which clusters were written, and a read-only export says so',
  async () => {
    await served(
      'qcow2',
      async open => {
        const client = await open([bitmapContext('b0')])
        assert.is(client.isReadOnly, true)
        assert.equal(await client.status(bitmapContext('b0'), 0, client.sizeBytes), [{ length: 64 * 1024 * 1024, flags: 0 }])
        assert.is(await codeOf(() => client.write(0, new Uint8Array(512))), 'NBD_REFUSED')
        client.close()
        assert.is(await codeOf(() => client.flush()), 'NBD_CLOSED')
      },
      ['--read-only', '--bitmap=b0'],
    )
  },
  { skip: noQemuNbd },
)

test.run()
