// Random migration streams as tokens, from a seed: valid ones of any shape that the layout allows. The same seed gives
// the same stream.
import { EOS_RECORD, QEMU_COMMAND } from '../../../edge-node/stream/layout.ts'
import { type BlockEntry, type Token, writeToken } from '../../../edge-node/stream/write.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'

export type Random = (below: number) => number

/** mulberry32: whole numbers in [0, below). */
export function randomFrom(seed: number): Random {
  let state = seed >>> 0
  return below => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below)
  }
}

export const randomBytes = (random: Random, length: number): Uint8Array => Uint8Array.from({ length }, () => random(256))

const NAMES = ['ram0', 'pc.bios', '/rom@etc/acpi/tables', 'm\xff\x00', 'x'.repeat(255), 'ram1']
const RAM_ID = 2

type Shape = { tokens: Token[]; captured: Set<string> }

/** A whole stream; its opaque tail is device state or, at times, something unknown in the middle. */
export function randomStream(random: Random): Shape {
  const footers = random(4) > 0
  const tokens: Token[] = [{ kind: 'magic', version: 3 }]
  const mode = (['plain', 'postcopy', 'shared'] as const)[random(3)]!
  if (mode === 'shared' || random(3) > 0) tokens.push(...configuration(random, mode))
  tokens.push(...commands(random, mode))
  const close: Token[] = footers ? [{ kind: 'eos' }, { kind: 'footer', id: RAM_ID }] : [{ kind: 'eos' }]
  const list = blockList(random, mode)
  tokens.push({ kind: 'start', id: RAM_ID, name: 'ram', instance: 0, version: 4 }, { kind: 'blocks', list }, ...close)
  const captured = new Set(list.filter(() => random(2) === 0).map(block => block.name))
  const state = { last: undefined as string | undefined }
  const sections = random(5)
  for (let section = 0; section <= sections; section++) {
    if (random(4) === 0) tokens.push({ kind: 'command', command: QEMU_COMMAND.switchoverStart, payload: new Uint8Array(0) })
    tokens.push({ kind: section === sections ? 'end' : 'part', id: RAM_ID })
    for (let count = random(6); count > 0; count--) tokens.push(page(random, list, state))
    if (random(12) === 0) return { tokens: [...tokens, { kind: 'opaque', bytes: unknownRecord(random) }], captured }
    tokens.push(...close)
    if (section < sections && random(12) === 0) return { tokens: [...tokens, { kind: 'opaque', bytes: unknownSection(random) }], captured }
  }
  tokens.push({ kind: 'opaque', bytes: Uint8Array.of(4, ...randomBytes(random, random(300))) })
  return { tokens, captured }
}

function configuration(random: Random, mode: string): Token[] {
  const tokens: Token[] = [{ kind: 'configuration', machine: 'machine'.slice(0, random(8)) }]
  const subsection = (name: string, fields: Uint8Array): Token => ({
    kind: 'subsection',
    name: `configuration/${name}`,
    version: 1,
    fields,
  })
  if (random(2) === 0) tokens.push(subsection('target-page-bits', Uint8Array.of(0, 0, 0, 12)))
  if (mode === 'shared') {
    const name = 'x-ignore-shared'
    tokens.push(subsection('capabilities', Uint8Array.of(0, 0, 0, 1, name.length, ...Buffer.from(name))))
  }
  if (random(2) === 0) tokens.push(subsection('uuid', randomBytes(random, 16)))
  return tokens
}

function commands(random: Random, mode: string): Token[] {
  const tokens: Token[] = []
  if (random(2) === 0) tokens.push({ kind: 'command', command: QEMU_COMMAND.openReturnPath, payload: new Uint8Array(0) })
  if (random(2) === 0) tokens.push({ kind: 'command', command: QEMU_COMMAND.ping, payload: randomBytes(random, 4) })
  if (mode === 'postcopy') tokens.push({ kind: 'command', command: QEMU_COMMAND.postcopyAdvise, payload: randomBytes(random, 16) })
  return tokens
}

function blockList(random: Random, mode: string): BlockEntry[] {
  const start = random(NAMES.length)
  return Array.from({ length: 1 + random(4) }, (_, index) => ({
    name: NAMES[(start + index) % NAMES.length]!,
    usedBytes: (1 + random(40)) * PAGE_BYTES,
    ...(mode === 'postcopy' && random(2) === 0 ? { pageBytes: 2 ** (13 + random(10)) } : {}),
    ...(mode === 'shared' ? { address: (BigInt(random(2 ** 32)) << 32n) | BigInt(random(2 ** 32)) } : {}),
  }))
}

function page(random: Random, list: readonly BlockEntry[], state: { last: string | undefined }): Token {
  const stays = state.last !== undefined && random(3) > 0
  const block = stays ? list.find(entry => entry.name === state.last)! : list[random(list.length)]!
  state.last = block.name
  const name = stays ? {} : { name: block.name }
  const offset = random(block.usedBytes / PAGE_BYTES) * PAGE_BYTES
  if (random(2) === 0) return { kind: 'zero', ...name, offset }
  return { kind: 'page', ...name, offset, bytes: new Uint8Array(PAGE_BYTES).fill(random(256)) }
}

const UNKNOWN_FLAGS = [0x40, 0x60, 0x80, 0x100, 0x120, 0x200, 0x400, 0x800, 0x00, 0x0a, 0x2a, 0x14, 0x24]

function unknownRecord(random: Random): Uint8Array {
  const head = Uint8Array.from(EOS_RECORD)
  const flags = UNKNOWN_FLAGS[random(UNKNOWN_FLAGS.length)]!
  head.set([flags >> 8, flags & 0xff], 6)
  return Uint8Array.of(...head, ...randomBytes(random, random(200)))
}

function unknownSection(random: Random): Uint8Array {
  const rest = randomBytes(random, random(200))
  const empty = new Uint8Array(0)
  const beginnings: Uint8Array[] = [
    Uint8Array.of([0x00, 0x04, 0x05, 0x06, 0x07, 0x09, 0xff][random(7)]!),
    writeToken({ kind: 'start', id: 9, name: ['slirp', 'dirty-bitmap', 'ram'][random(3)]!, instance: 0, version: 1 }),
    writeToken({ kind: 'command', command: [0, 4, 5, 6, 7, 8, 9, 10, 12, 65535][random(10)]!, payload: empty }),
    writeToken({ kind: 'command', command: QEMU_COMMAND.ping, payload: new Uint8Array(5) }),
  ]
  return Uint8Array.of(...beginnings[random(beginnings.length)]!, ...rest)
}
