import { tokenize } from '../../../edge-node/stream/tokenize.ts'
import { type Token, write } from '../../../edge-node/stream/write.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { type Random, randomBytes, randomFrom, randomStream } from './generate.ts'
import { cut, expected, parsePieces, positions } from './model.ts'

const test = suite('migration streams from a seed')
const SEEDS = 300

/** The bytes in pieces of random sizes, mostly small and odd. */
function randomPieces(random: Random, bytes: Uint8Array): Uint8Array[] {
  const pieces: Uint8Array[] = []
  for (let at = 0; at < bytes.length; ) {
    const size = random(3) === 0 ? random(20) : random(9000)
    pieces.push(bytes.subarray(at, at + size))
    at += size
  }
  return pieces
}

const same = (actual: unknown, wanted: unknown, seed: number) => assert.equal(actual, wanted, `seed ${seed}`)

test('writing the tokens of a stream gives its bytes, and reading these gives the tokens', () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { tokens } = randomStream(randomFrom(seed))
    const bytes = write(tokens)
    const read = tokenize(bytes)
    assert.is(Buffer.compare(write(read), bytes), 0, `seed ${seed}`)
    same(
      read.map(token => token.kind),
      tokens.map(token => token.kind),
      seed,
    )
  }
})

test('the parser takes out exactly the captured pages, whatever the pieces', () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = randomFrom(seed)
    const { tokens, captured } = randomStream(random)
    const captures = (name: string) => captured.has(name)
    const bytes = write(tokens)
    const wanted = expected(tokens, captures)
    for (const pieces of [[bytes], [...cut(bytes, 4096)], randomPieces(random, bytes), randomPieces(random, bytes)]) {
      const { reason: _, ...outcome } = parsePieces(pieces, captures)
      same([outcome.end, outcome.pages.length], [wanted.end, wanted.pages.length], seed)
      same(outcome.pages, wanted.pages, seed)
      assert.is(Buffer.compare(outcome.skeleton, wanted.skeleton), 0, `seed ${seed}`)
    }
  }
})

/** A stream with named, continued, captured and other pages and a look-ahead after the block list, below 20 KB. */
const SMALL: Token[] = [
  { kind: 'magic', version: 3 },
  { kind: 'configuration', machine: 'pc' },
  { kind: 'command', command: 3, payload: new Uint8Array(16) },
  { kind: 'start', id: 2, name: 'ram', instance: 0, version: 4 },
  {
    kind: 'blocks',
    list: [
      { name: 'ram0', usedBytes: 65536, pageBytes: 2 ** 21 },
      { name: 'rom', usedBytes: 8192 },
    ],
  },
  { kind: 'eos' },
  { kind: 'footer', id: 2 },
  { kind: 'part', id: 2 },
  { kind: 'page', name: 'ram0', offset: 4096, bytes: new Uint8Array(4096).fill(1) },
  { kind: 'zero', offset: 8192 },
  { kind: 'page', name: 'rom', offset: 0, bytes: new Uint8Array(4096).fill(2) },
  { kind: 'zero', offset: 4096 },
  { kind: 'zero', name: 'ram0', offset: 0 },
  { kind: 'eos' },
  { kind: 'footer', id: 2 },
  { kind: 'end', id: 2 },
  { kind: 'page', offset: 4096, bytes: new Uint8Array(4096).fill(3) },
  { kind: 'eos' },
  { kind: 'footer', id: 2 },
  { kind: 'opaque', bytes: Uint8Array.of(4, 1, 2, 3) },
]
const ram0 = (name: string) => name === 'ram0'

test('a small stream comes out the same at every split point and byte by byte', () => {
  const bytes = write(SMALL)
  const wanted = JSON.stringify({ ...expected(SMALL, ram0), reason: undefined })
  for (let at = 0; at <= bytes.length; at++) {
    const outcome = parsePieces([bytes.subarray(0, at), bytes.subarray(at)], ram0)
    assert.is(JSON.stringify(outcome), wanted, `split at ${at}`)
  }
  assert.is(JSON.stringify(parsePieces(cut(bytes, 1), ram0)), wanted)
})

test('every truncation before the device state is QEMU_STREAM, every later one is taken for the end', async () => {
  const bytes = write(SMALL)
  const devices = positions(SMALL).at(-1)!
  for (let end = 0; end <= bytes.length; end++) {
    const whole = () => parsePieces([bytes.subarray(0, end)], ram0)
    const tokens = () => tokenize(bytes.subarray(0, end))
    if (end >= devices) {
      assert.is(whole().end, 'devices')
      tokens()
    } else {
      assert.is(await codeOf(whole), 'QEMU_STREAM', `cut at ${end}`)
      assert.is(await codeOf(tokens), 'QEMU_STREAM', `cut at ${end}`)
    }
  }
})

test('a truncated stream that fell opaque is taken for the end from the byte that shows the unknown', async () => {
  const start = SMALL.slice(0, 12)
  const unknown = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x40, 9, 9, 9)
  const bytes = write([...start, { kind: 'opaque', bytes: unknown }])
  for (let end = bytes.length - unknown.length - 4200; end <= bytes.length; end++) {
    const body = () => parsePieces(cut(bytes.subarray(0, end), 100), ram0)
    if (end >= bytes.length - 3) assert.is(body().end, 'opaque')
    else assert.is(await codeOf(body), 'QEMU_STREAM')
  }
})

type Verdict = { skeleton: Uint8Array } | { code: string }

async function verdict(body: () => Uint8Array): Promise<Verdict> {
  try {
    return { skeleton: body() }
  } catch (error) {
    return {
      code: await codeOf(() => {
        throw error
      }),
    }
  }
}

test('parser and tokenizer judge altered streams alike and never fail but by QEMU_STREAM', async () => {
  const none = () => false
  const seen = { ok: 0, wrong: 0 }
  for (let seed = 1; seed <= 2 * SEEDS; seed++) {
    const random = randomFrom(seed)
    const bytes = seed % 10 === 0 ? randomBytes(random, 200) : write(randomStream(random).tokens)
    // Near the beginning most structure lies; elsewhere page bytes take most hits.
    for (let hits = 1 + random(3); hits > 0; hits--)
      bytes[random(random(2) === 0 ? Math.min(400, bytes.length) : bytes.length)]! = random(256)
    const tokens = await verdict(() => expected(tokenize(bytes), none).skeleton)
    const parsed = await verdict(() => parsePieces(randomPieces(random, bytes), none).skeleton)
    if ('code' in tokens) assert.is(tokens.code, 'QEMU_STREAM', `seed ${seed}`)
    seen['code' in tokens ? 'wrong' : 'ok']++
    same(parsed, tokens, seed)
  }
  assert.ok(seen.ok > 100 && seen.wrong > 100, JSON.stringify(seen))
})

test.run()
