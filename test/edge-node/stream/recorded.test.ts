import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { zstdDecompressSync } from 'node:zlib'
import { tokenize } from '../../../edge-node/stream/tokenize.ts'
import { type Token, write } from '../../../edge-node/stream/write.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { cut, expected, load, parsePieces, positions } from './model.ts'

const test = suite('recorded migration streams')

type Recorded = { captures: string[]; opaque?: string; guest: 'run' | 'paused'; bytes: number; argv: string[]; capabilities: string[] }

const folder = join(import.meta.dirname, '../../vectors/qemu-stream')
const index: Record<string, Recorded> = JSON.parse(readFileSync(join(folder, 'index.json'), 'utf8'))
const streams = Object.entries(index).map(([name, recorded]) => ({
  name,
  ...recorded,
  captures: (block: string) => recorded.captures.includes(block),
  stream: new Uint8Array(zstdDecompressSync(readFileSync(join(folder, `${name}.zst`)))),
}))
const streamOf = (name: string) => streams.find(recorded => recorded.name === name)!

test('there are streams of all the machines and capabilities that they were recorded for', () => {
  assert.ok(streams.length >= 15)
  for (const { name, stream, bytes } of streams) assert.is(stream.length, bytes, name)
})

test('writing what was read of each gives each, byte for byte', () => {
  for (const { name, stream } of streams) assert.is(Buffer.compare(write(tokenize(stream)), stream), 0, name)
})

test('the parser does with each what its tokens say, in pieces of any size', () => {
  for (const { name, stream, captures, opaque } of streams) {
    const wanted = expected(tokenize(stream), captures)
    const sizes = [stream.length, 65536, 4096, 1000, ...(stream.length < 300_000 ? [1, 7] : [])]
    for (const size of sizes) {
      const { reason, ...outcome } = parsePieces(cut(stream, size), captures)
      assert.is(Buffer.compare(outcome.skeleton, wanted.skeleton), 0, `${name} in pieces of ${size}`)
      assert.is(JSON.stringify(outcome.pages), JSON.stringify(wanted.pages), `${name} in pieces of ${size}`)
      assert.is(outcome.end, opaque === undefined ? 'devices' : 'opaque', name)
      assert.ok(reason === undefined ? opaque === undefined : reason.startsWith(opaque ?? '?'), `${name}: ${reason}`)
    }
  }
})

test('captured pages and skeleton together load to the same memory as the stream', () => {
  for (const { name, stream, captures, opaque } of streams) {
    if (opaque !== undefined) continue
    const outcome = parsePieces([stream], captures)
    const memory = new Map(outcome.pages.map(([block, offset, page]) => [`${block}:${offset}`, page]))
    load(tokenize(outcome.skeleton), memory)
    const wanted = load(tokenize(stream))
    assert.is(memory.size, wanted.size, name)
    for (const [place, page] of wanted) assert.is(memory.get(place), page, `${name} ${place}`)
  }
})

test('captured pages put back with their block named are the stream again but for names', () => {
  const named = (tokens: Token[]) => {
    let block = ''
    return tokens.map(token => {
      if (token.kind !== 'page' && token.kind !== 'zero') return token
      block = token.name ?? block
      return { ...token, name: block }
    })
  }
  for (const { name, stream } of streams) {
    const tokens = tokenize(stream)
    const all = parsePieces(cut(stream, 65536), () => false)
    assert.is(Buffer.compare(all.skeleton, write(named(tokens))), 0, name)
  }
})

test('a running guest gave several iterations, pages sent again and pages that continue a block', () => {
  for (const name of ['i440fx-running', 'q35-postcopy-off', 'q35-blocks', 'microvm-acpi', 'isapc', 'no-footers', 'i440fx-old']) {
    const tokens = tokenize(streamOf(name).stream)
    const pages = tokens.filter(token => token.kind === 'page')
    assert.ok(tokens.filter(token => token.kind === 'part').length > 3, name)
    assert.ok(pages.some(token => token.name === undefined) && pages.some(token => token.name !== undefined), name)
    assert.ok(pages.length > new Set(pages.map(token => token.offset)).size, name)
  }
})

test('every truncation of a short stream is QEMU_STREAM before the device state and an end within it', async () => {
  const { stream, captures } = streamOf('none')
  const devices = positions(tokenize(stream)).at(-1)!
  for (let end = 0; end <= stream.length; end++) {
    const body = () => parsePieces([stream.subarray(0, end)], captures)
    if (end >= devices) assert.is(body().end, 'devices')
    else assert.is(await codeOf(body), 'QEMU_STREAM', `cut at ${end}`)
  }
})

test('longer streams are cut at many places with the same verdict', async () => {
  for (const { name, stream, captures } of streams) {
    const rest = positions(tokenize(stream)).at(-1)!
    for (let count = 1; count <= 30; count++) {
      const end = Math.floor((stream.length * count) / 31)
      const body = () => parsePieces([stream.subarray(0, end)], captures)
      // An opaque part is known from its first 8 bytes at the latest, but for a START, which is known from its name.
      if (end >= rest + 300) body()
      else if (end < rest) assert.is(await codeOf(body), 'QEMU_STREAM', `${name} cut at ${end}`)
    }
  }
})

test.run()
