// edge-node/stream/parse.ts: QEMU's migration stream. The output must not depend on how the bytes are cut, and must not
// exceed the input.

import { concatBytes } from '../../crypto/bytes.ts'
import { QEMU_COMMAND } from '../../edge-node/stream/layout.ts'
import { createParser } from '../../edge-node/stream/parse.ts'
import { type Token, write } from '../../edge-node/stream/write.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { attempt, demand, pieces, sameBytes, type Target } from '../target.ts'

const EMPTY = new Uint8Array(0)
const RAM = 2
/**
 * A page record of 8 bytes with CONTINUE is written with its block's name: at most 256 bytes more, and one page more
 * when the parser stops.
 */
const GROWTH = 30
const GROWTH_BYTES = 2 * PAGE_BYTES

type Seen = { skeleton: Buffer; pages: string; error: GodwitError | undefined; captured: number }

function parse(chunks: readonly Uint8Array[], everything: boolean): Seen {
  const skeleton: Uint8Array[] = []
  const pages: string[] = []
  let captured = 0
  let over = false
  const note = (text: string) => {
    demand(!over, `${text} after the parser had handed over`)
    pages.push(text)
  }
  const parser = createParser(
    {
      skeleton: bytes => skeleton.push(bytes.slice()),
      page(block, offset, bytes) {
        demand(offset % PAGE_BYTES === 0 && offset >= 0 && offset + PAGE_BYTES <= block.usedBytes, 'a page outside its block')
        demand(bytes.length === PAGE_BYTES && block.captured, 'no page')
        captured += bytes.length
        note(`page ${block.name} ${offset} ${Buffer.from(bytes).toString('latin1')}`)
      },
      zero(block, offset) {
        demand(offset % PAGE_BYTES === 0 && offset + PAGE_BYTES <= block.usedBytes, 'a zero page outside its block')
        note(`zero ${block.name} ${offset}`)
      },
      blocks: list => note(`blocks ${JSON.stringify(list)}`),
      ramEnd: () => {
        note('ramEnd')
        over = true
      },
      opaque: reason => {
        note(`opaque ${reason}`)
        over = true
      },
    },
    { captures: name => everything || name.startsWith('ram') },
  )
  const { error } = attempt(() => {
    for (const chunk of chunks) parser.push(chunk)
    parser.end()
  })
  return { skeleton: Buffer.concat(skeleton), pages: pages.join('\n'), error, captured }
}

const page = (offset: number, name?: string): Token => ({
  kind: 'page',
  ...(name === undefined ? {} : { name }),
  offset,
  bytes: new Uint8Array(PAGE_BYTES).fill(5),
})
const zero = (offset: number, name?: string): Token => ({ kind: 'zero', ...(name === undefined ? {} : { name }), offset })
const close: Token[] = [{ kind: 'eos' }, { kind: 'footer', id: RAM }]
const list = [
  { name: 'ram0', usedBytes: 8 * PAGE_BYTES },
  { name: 'pc.bios', usedBytes: 2 * PAGE_BYTES },
]
const begin: Token[] = [
  { kind: 'magic', version: 3 },
  { kind: 'configuration', machine: 'pc' },
  { kind: 'subsection', name: 'configuration/target-page-bits', version: 1, fields: Uint8Array.of(0, 0, 0, 12) },
  { kind: 'command', command: QEMU_COMMAND.openReturnPath, payload: EMPTY },
]
const start: Token[] = [{ kind: 'start', id: RAM, name: 'ram', instance: 0, version: 4 }]
const rounds: Token[] = [
  ...[{ kind: 'part', id: RAM } as Token, zero(0, 'ram0'), zero(4096), zero(0, 'pc.bios'), zero(4096), zero(8192, 'ram0'), ...close],
  { kind: 'command', command: QEMU_COMMAND.switchoverStart, payload: EMPTY },
  ...[{ kind: 'end', id: RAM } as Token, zero(4096, 'pc.bios'), ...close],
]
const capability = (name: string): Token => ({
  kind: 'subsection',
  name: 'configuration/capabilities',
  version: 1,
  fields: Uint8Array.of(0, 0, 0, 1, name.length, ...Buffer.from(name)),
})
const tail: Token = { kind: 'opaque', bytes: Uint8Array.of(4, 0, 0, 0, 9, 3, 97, 98, 99, 0) }

const SEEDS: Token[][] = [
  [...begin, ...start, { kind: 'blocks', list }, ...close, ...rounds, tail],
  [
    ...begin,
    ...start,
    { kind: 'blocks', list },
    ...close,
    { kind: 'part', id: RAM },
    page(0, 'ram0'),
    zero(4096),
    { kind: 'opaque', bytes: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x40, 1, 2) },
  ],
  [
    ...begin,
    ...start,
    { kind: 'blocks', list },
    ...close,
    { kind: 'part', id: RAM },
    page(0, 'pc.bios'),
    page(4096),
    { kind: 'eos' },
    { kind: 'opaque', bytes: Uint8Array.of(1, 0, 0, 0, 9, 5) },
  ],
  [
    ...begin,
    capability('x-ignore-shared'),
    ...start,
    { kind: 'blocks', list: list.map(block => ({ ...block, address: 4096n })) },
    ...close,
    ...rounds,
    tail,
  ],
  [
    ...begin,
    { kind: 'command', command: QEMU_COMMAND.postcopyAdvise, payload: new Uint8Array(16) },
    ...start,
    { kind: 'blocks', list: list.map(block => ({ ...block, pageBytes: 2 ** 21 })) },
    ...close,
    ...rounds,
    tail,
  ],
]

export const qemuStream: Target = {
  name: 'qemu-stream',
  what: "edge-node/stream/parse.ts: QEMU's migration stream",
  codes: ['QEMU_STREAM'],
  testRuns: 4000,
  memoryBytes: 48 * 1024 * 1024,
  words: [
    'QEVM',
    'ram0',
    'pc.bios',
    '\x03ram',
    'configuration/capabilities',
    'postcopy-ram',
    'x-ignore-shared',
    ...[0, 0x08, 0x02, 0x28, 0x22, 0x10, 0x04, 0x40, 0x100, 0x200].map(flag => Uint8Array.of(0, 0, 0, 0, 0, 0, flag >> 8, flag & 255)),
    Uint8Array.of(2, 0, 0, 0, RAM),
    Uint8Array.of(0x7e, 0, 0, 0, RAM),
  ],
  seeds: () => SEEDS.map(tokens => concatBytes(Uint8Array.of(0), write(tokens))),
  hostile() {
    const named = 'r'.repeat(255)
    const many: Token[] = Array.from({ length: 30_000 }, () => zero(0))
    return {
      'a machine of four gigabytes': Uint8Array.of(0, ...write([begin[0]!]), 7, 255, 255, 255, 255),
      'blocks without end': concatBytes(
        Uint8Array.of(0),
        write([...begin, ...start, { kind: 'blocks', list: Array.from({ length: 5000 }, (_, i) => ({ name: `b${i}`, usedBytes: 4096 })) }]),
      ),
      'pages that continue a long name': concatBytes(
        Uint8Array.of(0),
        write([
          ...begin,
          ...start,
          { kind: 'blocks', list: [{ name: `x${named.slice(1)}`, usedBytes: 4096 }] },
          zero(0, `x${named.slice(1)}`),
          ...many,
        ]),
      ),
    }
  },
  run(input) {
    const everything = (input[0] ?? 0) % 2 === 1
    const bytes = input.subarray(1)
    const whole = parse([bytes], everything)
    const cut = parse(pieces(bytes), everything)
    demand(whole.error?.message === cut.error?.message, 'the error depends on how the bytes are cut')
    // Content before an error in the same chunk may not have been delivered.
    const shared = whole.error ? Math.min(whole.skeleton.length, cut.skeleton.length) : whole.skeleton.length
    demand(
      sameBytes(whole.skeleton.subarray(0, shared), whole.error ? cut.skeleton.subarray(0, shared) : cut.skeleton),
      'the skeleton depends on how the bytes are cut',
    )
    demand(whole.pages === cut.pages, 'the pages depend on how the bytes are cut')
    demand(
      whole.skeleton.length <= GROWTH * bytes.length + GROWTH_BYTES,
      `a skeleton of ${whole.skeleton.length} bytes from ${bytes.length}`,
    )
    demand(whole.captured <= bytes.length, 'more pages than bytes')
    if (whole.error) throw whole.error
  },
}
