// Two QEMUs that are none, for the stories of source and target without a guest: one writes a migration stream that a
// seed makes, the other takes it and says SHUT when it is whole. Enters: a seed. Leaves: a guest (its stream, the
// memory that it must leave, the skeleton of it) and what the stories ask of a machine.
// Always holds: as in QEMU, a socket that is not read holds the writer back; SHUT(0) completes the source, a closed
// socket makes it fail and run on; a guest that has powered off or panicked goes on being copied, and one that is
// stopped meanwhile says so in an event alone.
import { openSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import type { QmpClient } from '../../edge-node/qmp/client.ts'
import { QEMU_COMMAND } from '../../edge-node/stream/layout.ts'
import { createParser } from '../../edge-node/stream/parse.ts'
import { encodeReturnPath, RETURN_PATH } from '../../edge-node/stream/return-path.ts'
import { type Token, write } from '../../edge-node/stream/write.ts'
import type { RunningVm } from '../../edge-node/vm/machine.ts'
import { sleep } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { type Random, randomBytes, randomFrom } from '../edge-node/stream/generate.ts'

export type FakeGuest = {
  stream: Uint8Array
  /** The guest stands still from this byte of the stream on. */
  stopAt: number
  memory: Buffer
  skeleton: Buffer
}

type GuestShape = { pages: number; rounds: number }

/** Every round rewrites some pages; many are zero, many are equal, some come back as they were. */
export function fakeGuest(seed: number, { pages, rounds }: GuestShape): FakeGuest {
  const random = randomFrom(seed)
  const memory = Buffer.alloc(pages * PAGE_BYTES)
  const close: Token[] = [{ kind: 'eos' }, { kind: 'footer', id: 2 }]
  const blocks = [
    { name: 'ram0', usedBytes: memory.length },
    { name: 'pc.bios', usedBytes: 4 * PAGE_BYTES },
  ]
  const before: Token[] = [
    { kind: 'magic', version: 3 },
    { kind: 'configuration', machine: 'pc' },
    { kind: 'command', command: QEMU_COMMAND.openReturnPath, payload: new Uint8Array(0) },
    { kind: 'command', command: QEMU_COMMAND.ping, payload: Uint8Array.of(0, 0, 0, 1) },
    ...([{ kind: 'start', id: 2, name: 'ram', instance: 0, version: 4 }, { kind: 'blocks', list: blocks }, ...close] as Token[]),
  ]
  const round = (of: number): Token[] =>
    Array.from({ length: of === 0 ? pages : 1 + random(pages) }, (_, i) => pageToken(random, memory, of === 0 ? i : random(pages)))
  const live = Array.from({ length: rounds }, (_, i): Token[] => [{ kind: 'part', id: 2 }, ...round(i), biosPage(random), ...close]).flat()
  const last: Token[] = [{ kind: 'end', id: 2 }, ...round(rounds), ...close]
  const devices = Buffer.concat([Buffer.from([4]), randomBytes(random, 200 + random(3000)), description()])
  const running = write([...before, ...live])
  const stream = Buffer.concat([running, write(last), devices])
  return { stream, stopAt: running.length, memory, skeleton: skeletonOf(stream) }
}

function pageToken(random: Random, memory: Buffer, page: number): Token {
  const offset = page * PAGE_BYTES
  const bytes = memory.subarray(offset, offset + PAGE_BYTES)
  const kind = random(10)
  if (kind < 2) bytes.fill(0)
  else if (kind < 6) bytes.fill(1 + random(4))
  else if (kind < 9) bytes.set(randomBytes(random, PAGE_BYTES))
  return kind < 2 ? { kind: 'zero', name: 'ram0', offset } : { kind: 'page', name: 'ram0', offset, bytes: Uint8Array.from(bytes) }
}

const biosPage = (random: Random): Token => ({
  kind: 'page',
  name: 'pc.bios',
  offset: random(4) * PAGE_BYTES,
  bytes: new Uint8Array(PAGE_BYTES).fill(random(256)),
})

function description(): Buffer {
  const json = Buffer.from('{"devices": []}')
  return Buffer.concat([Buffer.from([0x00, 0x06, 0, 0, 0, json.length]), json])
}

/** What of a stream does not travel as pages. */
function skeletonOf(stream: Uint8Array): Buffer {
  const parts: Buffer[] = []
  const nothing = () => {}
  const events = { page: nothing, zero: nothing, blocks: nothing, ramEnd: nothing, opaque: nothing }
  createParser({ ...events, skeleton: bytes => void parts.push(Buffer.from(bytes)) }, { captures: name => name === 'ram0' }).push(stream)
  return Buffer.concat(parts)
}

const PONG = Buffer.from(encodeReturnPath(RETURN_PATH.pong, Uint8Array.of(0, 0, 0, 1)))
const SHUT = Buffer.from(encodeReturnPath(RETURN_PATH.shut, new Uint8Array(4)))

/** What a guest does by itself. */
export type GuestAct = 'powers off' | 'panics' | 'falls asleep' | 'reboots'
const ACTS = {
  'powers off': { event: 'SHUTDOWN', data: { guest: true, reason: 'guest-shutdown' }, run: 'shutdown' },
  panics: { event: 'GUEST_PANICKED', data: { action: 'pause' }, run: 'guest-panicked' },
  'falls asleep': { event: 'SUSPEND', data: {}, run: 'suspended' },
  reboots: { event: 'RESET', data: { guest: true, reason: 'guest-reset' }, run: 'running' },
} as const

export type FakeSource = {
  qmp: QmpClient
  readonly running: boolean
  /** QEMU's RunState. */
  readonly status: string
  /** A guest that stands still already has begun to do it before. */
  guest(act: GuestAct): void
  readonly returned: Buffer
}

/**
 * `dir`: the working folder of this QEMU, in which it finds the migration socket. `pauseMs`: between two chunks of 16
 * KiB. `mayStop`: the guest of a live migration runs until this has resolved.
 */
export function fakeSource(
  { stream, stopAt }: FakeGuest,
  dir: string,
  pauseMs = 0,
  major = 10,
  mayStop: Promise<unknown> = Promise.resolve(),
): FakeSource {
  const listeners = new Map<string, Set<(event: unknown) => void>>()
  const emit = (event: string, data: object = {}) => {
    for (const listener of listeners.get(event) ?? []) listener({ event, data, atMs: 0 })
  }
  const state = { migration: 'none', run: 'running', before: 'running', returned: Buffer.alloc(0) }
  const isLive = (run: string) => run === 'running' || run === 'suspended'
  const write = async (socket: Socket) => {
    for (let at = 0; at < stream.length && !socket.destroyed; at += 16_384) {
      if (at >= stopAt && state.run !== 'finish-migrate') {
        await mayStop
        // A migration that was cancelled meanwhile stops nothing.
        if (state.migration !== 'active') return
        Object.assign(state, { before: state.run, run: 'finish-migrate' })
        if (state.before === 'running') emit('STOP')
      }
      await new Promise(resolve => socket.write(stream.subarray(at, at + 16_384), resolve))
      if (pauseMs > 0) await sleep(pauseMs)
    }
  }
  const migrate = (path: string) => {
    const socket = connect(path)
    state.migration = 'active'
    socket.on('error', () => {})
    socket.on('data', chunk => {
      state.returned = Buffer.concat([state.returned, chunk as Buffer])
      if (!state.returned.subarray(-SHUT.length).equals(SHUT) || state.returned.length <= PONG.length) return
      Object.assign(state, { migration: 'completed', run: 'postmigrate' })
      socket.end()
    })
    socket.on('close', () => {
      if (state.migration !== 'active') return
      state.migration = 'failed'
      if (state.run === 'finish-migrate') state.run = state.before
    })
    void write(socket)
  }
  const answers: Record<string, (args: Record<string, unknown>) => unknown> = {
    migrate: ({ uri }) => migrate(join(dir, String(uri).slice('unix:'.length))),
    'query-migrate': () => ({ status: state.migration }),
    'query-status': () => ({ status: state.run, running: state.run === 'running' }),
    migrate_cancel: () => Object.assign(state, { migration: 'cancelled' }),
    stop: () => (isLive(state.run) ? Object.assign(state, { before: state.run, run: 'paused' }) : {}),
    cont() {
      if (state.run === 'shutdown') throw new GodwitError('QEMU_COMMAND', 'cont: Resetting the Virtual Machine is required')
      if (state.run !== 'suspended') state.run = state.before === 'suspended' ? 'suspended' : 'running'
    },
  }
  const qmp = {
    version: { major, minor: 0, micro: 2 },
    execute: async (command: string, args: Record<string, unknown> = {}) => answers[command]?.(args) ?? {},
    on(event: string, listener: (event: unknown) => void) {
      const set = listeners.get(event) ?? new Set()
      listeners.set(event, set.add(listener))
      return () => set.delete(listener)
    },
  } as unknown as QmpClient
  return {
    qmp,
    get running() {
      return state.run === 'running'
    },
    get status() {
      return state.run
    },
    guest(act) {
      const { event, data, run } = ACTS[act]
      const stops = isLive(state.run) && !isLive(run)
      if (isLive(state.run)) state.run = run
      emit(event, data)
      if (stops) emit('STOP')
    },
    get returned() {
      return state.returned
    },
  }
}

/** What the source's QEMU must have heard: each once. */
export const RETURNED = Buffer.concat([PONG, SHUT])

type FakeTarget = {
  vm: RunningVm
  readonly running: boolean
  readonly status: string
  memory(): Buffer
  readonly skeleton: Buffer
  kill(): void
}

/**
 * `file`: where its memory lies; its folder is the working folder of this QEMU. It holds something else before, as a
 * memfd of an earlier attempt would.
 */
/** `loadsAs`: the RunState that comes with the guest. */
export function fakeTarget({ memory, skeleton }: FakeGuest, file: string, loadsAs = 'paused'): FakeTarget {
  writeFileSync(file, Buffer.alloc(memory.length, 0xee))
  const state = { run: 'inmigrate', got: Buffer.alloc(0) }
  const server = createServer(socket => {
    server.close()
    socket.on('error', () => {})
    socket.on('data', chunk => {
      // The answer to the stream's PING.
      if (state.got.length === 0) socket.write(PONG)
      state.got = Buffer.concat([state.got, chunk as Buffer])
      if (state.got.length < skeleton.length || state.run !== 'inmigrate') return
      state.run = loadsAs === 'suspended' ? 'paused' : loadsAs
      socket.end(SHUT)
    })
  })
  const commands = {
    setCapabilities: async () => {},
    setParameters: async () => {},
    migrateIncoming: (uri: string) => new Promise<void>(resolve => server.listen(join(dirname(file), uri.slice('unix:'.length)), resolve)),
    queryStatus: async () => ({ status: state.run, running: state.run === 'running' }),
    async cont() {
      if (state.run === 'shutdown') throw new GodwitError('QEMU_COMMAND', 'cont: Resetting the Virtual Machine is required')
      state.run = loadsAs === 'suspended' ? 'suspended' : 'running'
    },
    announceSelf: async () => {},
    activateDisks: async () => {},
  }
  const vm = {
    commands,
    runDir: dirname(file),
    memoryBytes: memory.length,
    memoryFd: async () => openSync(file, 'r+'),
    exited: new Promise(() => {}),
    logTail: async () => '',
    alive: true,
  } as unknown as RunningVm
  return {
    vm,
    get running() {
      return state.run === 'running'
    },
    get status() {
      return state.run
    },
    memory: () => readFileSync(file),
    get skeleton() {
      return state.got
    },
    kill: () => server.close(),
  }
}
