import { createParser, type RamBlock, type StreamEvents } from '../../../edge-node/stream/parse.ts'
import { tokenize } from '../../../edge-node/stream/tokenize.ts'
import { type Token, write } from '../../../edge-node/stream/write.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { cut, load, parsePieces } from './model.ts'

const test = suite('migration stream parser')

const page = (fill: number) => new Uint8Array(4096).fill(fill)
const begin: Token[] = [
  { kind: 'magic', version: 3 },
  { kind: 'configuration', machine: 'pc' },
]
const close: Token[] = [{ kind: 'eos' }, { kind: 'footer', id: 2 }]
const list = [
  { name: 'ram0', usedBytes: 1 << 20 },
  { name: 'rom', usedBytes: 8192 },
]
const setup: Token[] = [...begin, { kind: 'start', id: 2, name: 'ram', instance: 0, version: 4 }, { kind: 'blocks', list }, ...close]
const part: Token = { kind: 'part', id: 2 }
const end: Token[] = [{ kind: 'end', id: 2 }, ...close, { kind: 'opaque', bytes: Uint8Array.of(4, 5, 6) }]
const ram0 = (name: string) => name === 'ram0'
const silent: StreamEvents = { skeleton() {}, page() {}, zero() {}, blocks() {}, ramEnd() {}, opaque() {} }

test('blocks, pages, the end of RAM and the skeleton come in stream order', () => {
  const log: string[] = []
  const parser = createParser(
    {
      skeleton: bytes => log.push(`skeleton ${bytes.length}`),
      page: (block, offset, bytes) => log.push(`page ${block.name} ${offset} ${bytes.length} ${bytes[0]}`),
      zero: (block, offset) => log.push(`zero ${block.name} ${offset}`),
      blocks: blocks => log.push(`blocks ${blocks.map(block => `${block.name} ${block.usedBytes} ${block.captured}`).join(', ')}`),
      ramEnd: () => log.push('ramEnd'),
      opaque: reason => log.push(`opaque ${reason}`),
      boundary: () => log.push('boundary'),
    },
    { captures: ram0 },
  )
  const pages: Token[] = [
    { kind: 'zero', name: 'ram0', offset: 4096 },
    { kind: 'page', offset: 8192, bytes: page(7) },
    { kind: 'zero', name: 'rom', offset: 0 },
    { kind: 'zero', offset: 4096 },
  ]
  parser.push(write([...setup, part, ...pages, ...close, ...end]))
  parser.end()
  assert.equal(log, [
    'blocks ram0 1048576 true, rom 8192 false',
    'skeleton 78',
    'boundary',
    'skeleton 5',
    'zero ram0 4096',
    'page ram0 8192 4096 7',
    'skeleton 13',
    'skeleton 12',
    'skeleton 14',
    'boundary',
    'skeleton 18',
    'ramEnd',
    'skeleton 3',
  ])
})

test('a page within one chunk is a view of it, and a page across two is still one', () => {
  const bytes = write([...setup, part, { kind: 'page', name: 'ram0', offset: 0, bytes: page(1) }, ...close, ...end])
  const buffers: ArrayBufferLike[] = []
  const take = { ...silent, page: (_block: RamBlock, _offset: number, view: Uint8Array) => buffers.push(view.buffer) }
  createParser(take, { captures: ram0 }).push(bytes)
  assert.is(buffers[0], bytes.buffer)
  const parser = createParser(take, { captures: ram0 })
  parser.push(bytes.subarray(0, 1000))
  parser.push(bytes.subarray(1000))
  assert.is(buffers.length, 2)
})

test('a chunk may be a Buffer, and is not read after push returns', () => {
  const bytes = write([...setup, part, { kind: 'page', name: 'ram0', offset: 0, bytes: page(1) }, ...close, ...end])
  const fills: number[] = []
  const parser = createParser({ ...silent, page: (_, __, view) => fills.push(view[0]!, view[4095]!) }, { captures: ram0 })
  for (const piece of cut(bytes, 100)) {
    const chunk = Buffer.from(piece)
    parser.push(chunk)
    chunk.fill(0xee)
  }
  assert.equal(fills, [1, 1])
})

test('phase, iterations, ramOnly and betweenSections tell where the stream is', () => {
  const parser = createParser(silent, { captures: ram0 })
  const state = () => [parser.phase, parser.betweenSections, parser.iterations, parser.ramOnly]
  const push = (tokens: Token[]) => {
    parser.push(write(tokens))
    return state()
  }
  assert.equal(state(), ['header', false, 0, undefined])
  assert.equal(push(begin), ['header', false, 0, undefined])
  assert.equal(push([{ kind: 'command', command: 1, payload: new Uint8Array(0) }]), ['header', true, 0, undefined])
  assert.equal(push(setup.slice(2)), ['setup', true, 0, undefined])
  assert.equal(push([part]), ['iterate', false, 1, true])
  assert.equal(push([{ kind: 'zero', name: 'ram0', offset: 0 }]), ['iterate', false, 1, true])
  assert.equal(push(close), ['iterate', true, 1, true])
  assert.equal(push([part, ...close]), ['iterate', true, 2, true])
  parser.push(Uint8Array.of(2, 0))
  assert.is(parser.betweenSections, false)
  parser.push(Uint8Array.of(0, 0, 2))
  assert.equal(push(close), ['iterate', true, 3, true])
  assert.equal(push(end.slice(0, 1)), ['end', false, 3, true])
  assert.equal(push(end.slice(1)), ['devices', false, 3, true])
})

/** Each contradicts the layout. */
const WRONG: Record<string, Uint8Array> = {
  'another magic': Uint8Array.of(1, 2, 3, 4, 0, 0, 0, 3),
  'another version': write([{ kind: 'magic', version: 4 }]),
  'a machine name without end': Uint8Array.of(...write([begin[0]!]), 7, 0, 0, 1, 0),
  'capabilities without end': write([
    ...begin,
    { kind: 'subsection', name: 'configuration/capabilities', version: 1, fields: Uint8Array.of(0, 0, 0, 65) },
  ]),
  'a PART before START': write([...begin, part]),
  'a PART of another section': write([...setup, { kind: 'part', id: 3 }]),
  'a footer of another section': write([...setup, part, { kind: 'eos' }, { kind: 'footer', id: 3 }]),
  'a page that continues nothing': write([...setup, part, { kind: 'zero', offset: 0 }]),
  'a page behind its block': write([...setup, part, { kind: 'zero', name: 'ram0', offset: 1 << 20 }]),
  'an offset above 2^53': write([...setup, part, { kind: 'opaque', bytes: Uint8Array.of(16, 0, 0, 0, 0, 0, 0, 2, 3, 114, 111, 109, 0) }]),
  'a zero page filled with 1': Uint8Array.from(write([...setup, part, { kind: 'zero', name: 'ram0', offset: 0 }])).fill(1, -1),
  'a block twice': write([...setup.slice(0, 3), { kind: 'blocks', list: [list[0]!, list[0]!] }]),
  'a block without a name': write([...setup.slice(0, 3), { kind: 'blocks', list: [{ name: '', usedBytes: 4096 }] }]),
  'a list longer than its total': Uint8Array.of(
    ...write(setup.slice(0, 3)),
    ...[0, 0, 0, 0, 0, 0, 0x10, 4],
    ...[1, 65, 0, 0, 0, 0, 0, 0, 0x20, 0],
  ),
}

for (const [what, bytes] of Object.entries(WRONG)) {
  test(`${what} is QEMU_STREAM, at any split, and stays so`, async () => {
    for (const size of [bytes.length, 1, 3]) {
      const parser = createParser(silent, { captures: ram0 })
      const push = () => {
        for (const piece of cut(bytes, size)) parser.push(piece)
      }
      assert.is(await codeOf(push), 'QEMU_STREAM')
      assert.is(await codeOf(() => parser.push(write(end))), 'QEMU_STREAM')
      assert.is(await codeOf(() => parser.end()), 'QEMU_STREAM')
    }
    assert.is(await codeOf(() => tokenize(bytes)), 'QEMU_STREAM')
  })
}

const command = (number: number, length: number): Token => ({ kind: 'command', command: number, payload: new Uint8Array(length) })
const subsection = (name: string, version: number, ...fields: number[]): Token => ({
  kind: 'subsection',
  name: `configuration/${name}`,
  version,
  fields: Uint8Array.from(fields),
})
const start = (name: string, version: number, instance = 0): Token => ({ kind: 'start', id: 9, name, instance, version })
const record = (flags: number, ...rest: number[]): Token => ({
  kind: 'opaque',
  bytes: Uint8Array.of(0, 0, 0, 0, 0, 0, flags >> 8, flags & 255, ...rest),
})

/** What is not known, where it stands, and how the reason for falling opaque begins. */
const UNKNOWN: [string, Token[], Token][] = [
  ['subsection configuration/new', begin, subsection('new', 1)],
  ['version 2 of configuration/uuid', begin, subsection('uuid', 2)],
  ['pages of 2^16 bytes', begin, subsection('target-page-bits', 1, 0, 0, 0, 16)],
  ['capability mapped-ram', begin, subsection('capabilities', 1, 0, 0, 0, 1, 10, ...Buffer.from('mapped-ram'))],
  ['a configuration after the first section', setup, begin[1]!],
  ['device state before the end of RAM', begin, { kind: 'opaque', bytes: Uint8Array.of(4, 0, 0, 0, 2) }],
  ['end of the sections before the end of RAM', setup, { kind: 'opaque', bytes: Uint8Array.of(0) }],
  ['section type 0x9', begin, { kind: 'opaque', bytes: Uint8Array.of(9) }],
  ['iterable section slirp', begin, start('slirp', 4)],
  ['iterable section dirty-bitmap', setup, start('dirty-bitmap', 1)],
  ['iterable section ram', setup, start('ram', 4)],
  ['section ram of instance 1', begin, start('ram', 4, 1)],
  ['section ram of instance 0, version 5', begin, start('ram', 5)],
  ...[4, 5, 6, 7, 8, 9, 10, 12].map((number): [string, Token[], Token] => [`command ${number} of 4 bytes`, setup, command(number, 4)]),
  ['command 2 of 5 bytes', setup, command(2, 5)],
  ['RAM record with flags 0x200', setup.slice(0, 4), record(0x200)],
  ['RAM record with flags 0x4', [...setup, part], { kind: 'blocks', list }],
  ['RAM record with flags 0x4', setup.slice(0, 4), { kind: 'blocks', list }],
  ['RAM record with flags 0x10', [...setup, part], { kind: 'opaque', bytes: Uint8Array.of(0, 0, 0, 0, 0, 0, 16, 16) }],
  ...[0x00, 0x0a, 0x40, 0x60, 0x80, 0x100, 0x400, 0x800].map((flags): [string, Token[], Token] => [
    `RAM record with flags 0x${flags.toString(16)}`,
    [...setup, part],
    record(flags),
  ]),
  ['a page of a block that was not announced', [...setup, part], { kind: 'zero', name: 'rom2', offset: 0 }],
]

for (const [reason, before, unknown] of UNKNOWN) {
  test(`${reason}: the rest passes untouched`, () => {
    const bytes = write([...before, unknown, { kind: 'opaque', bytes: Uint8Array.of(1, 2, 3, 4, 5) }])
    for (const size of [bytes.length, 1, 5]) {
      const outcome = parsePieces(cut(bytes, size), ram0)
      assert.is(outcome.end, 'opaque')
      assert.ok(outcome.reason?.startsWith(reason), outcome.reason)
      assert.is(Buffer.compare(outcome.skeleton, bytes), 0)
    }
  })
}

/**
 * Loads what the parser made of `known` and then `unknown`, where `later` are pages that the target's QEMU reads in the
 * opaque part.
 */
function loadBoth(known: Token[], unknown: Uint8Array, later: Token[], inBody: boolean): Map<string, string>[] {
  const bytes = write([...known, { kind: 'opaque', bytes: unknown }, ...later])
  const outcome = parsePieces(cut(bytes, 777), ram0)
  assert.is(outcome.end, 'opaque')
  const tail = write([{ kind: 'opaque', bytes: unknown }, ...later])
  const front = outcome.skeleton.subarray(0, outcome.skeleton.length - tail.length)
  assert.is(Buffer.compare(outcome.skeleton.subarray(front.length), tail), 0)
  const closed = tokenize(write([{ kind: 'opaque', bytes: front }, ...(inBody ? close : []), ...end]))
  const memory = new Map(outcome.pages.map(([block, offset, content]) => [`${block}:${offset}`, content]))
  return [load([...closed, ...later], memory), load([...known, ...later])]
}

const dirtyBitmap = write([start('dirty-bitmap', 1), { kind: 'opaque', bytes: Uint8Array.of(1) }, { kind: 'footer', id: 9 }])
const xbzrle = Uint8Array.of(0, 0, 0, 0, 0, 0, 0x30, 0x60, 1, 0, 1, 0)
const captured: Record<string, Token[]> = {
  'a captured page': [{ kind: 'page', name: 'ram0', offset: 4096, bytes: page(5) }],
  'a captured zero page': [
    { kind: 'page', name: 'rom', offset: 4096, bytes: page(5) },
    { kind: 'zero', name: 'ram0', offset: 8192 },
  ],
  'a captured page that continues one': [
    { kind: 'page', name: 'ram0', offset: 4096, bytes: page(5) },
    { kind: 'page', offset: 8192, bytes: page(6) },
  ],
  'another page after a captured one': [
    { kind: 'page', name: 'ram0', offset: 4096, bytes: page(5) },
    { kind: 'page', name: 'rom', offset: 4096, bytes: page(6) },
  ],
}

for (const [what, pages] of Object.entries(captured)) {
  const later: Token[] = [
    { kind: 'page', offset: 0, bytes: page(9) },
    { kind: 'zero', offset: 4096 },
  ]
  test(`opaque within RAM after ${what}: pages that continue the block go to the right one`, () => {
    const [memory, wanted] = loadBoth([...setup, part, ...pages], xbzrle, [...later, ...close], true)
    assert.equal([...memory!].sort(), [...wanted!].sort())
  })
  test(`opaque between sections after ${what}: pages that continue the block go to the right one`, () => {
    const [memory, wanted] = loadBoth([...setup, part, ...pages, ...close], dirtyBitmap, [part, ...later, ...close], false)
    assert.equal([...memory!].sort(), [...wanted!].sort())
  })
}

test('without captured pages an opaque stream is not changed at all', () => {
  const pages: Token[] = [{ kind: 'page', name: 'rom', offset: 4096, bytes: page(6) }]
  const bytes = write([...setup, part, ...pages, ...close, start('slirp', 1), { kind: 'opaque', bytes: Uint8Array.of(1, 2, 3) }])
  assert.is(Buffer.compare(parsePieces(cut(bytes, 5), ram0).skeleton, bytes), 0)
})

test('an error of a callback ends the parser', async () => {
  const fail = () => {
    throw new TypeError('ours')
  }
  const parser = createParser({ ...silent, blocks: fail }, { captures: ram0 })
  assert.throws(() => parser.push(write(setup)), /ours/)
  assert.throws(() => parser.push(new Uint8Array(1)), /ours/)
  assert.throws(() => parser.end(), /ours/)
})

test('a block list with page sizes or addresses is read as its capabilities say', () => {
  const seen: [string, number | undefined][] = []
  const advise = command(3, 16)
  const shared = subsection('capabilities', 1, 0, 0, 0, 1, 15, ...Buffer.from('x-ignore-shared'))
  const both = subsection('capabilities', 1, 0, 0, 0, 2, 15, ...Buffer.from('x-ignore-shared'), 12, ...Buffer.from('postcopy-ram'))
  const stream = (before: Token[], extra: object) => {
    const blocks: Token = { kind: 'blocks', list: list.map(block => ({ ...block, ...extra })) }
    return write([...begin, ...before, ...setup.slice(2, 3), blocks, ...close, ...end])
  }
  for (const bytes of [stream([advise], { pageBytes: 1 << 30 }), stream([advise], {}), stream([shared], { address: 1n << 63n })]) {
    for (const size of [bytes.length, 1, 9]) {
      const parser = createParser(
        { ...silent, blocks: blocks => seen.push(...blocks.map((block): [string, number | undefined] => [block.name, block.pageBytes])) },
        { captures: ram0 },
      )
      for (const piece of cut(bytes, size)) parser.push(piece)
      assert.is(parser.phase, 'devices')
    }
  }
  const sized = (pageBytes: number | undefined) =>
    Array(3)
      .fill([
        ['ram0', pageBytes],
        ['rom', pageBytes],
      ])
      .flat()
  assert.equal(seen, [...sized(1 << 30), ...sized(undefined), ...sized(undefined)])
  assert.is(parsePieces([stream([both], {})], ram0).reason, 'a block list with page sizes and addresses')
})

test.run()
