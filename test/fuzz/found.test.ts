import zlib from 'node:zlib'
import { concatBytes } from '../../crypto/bytes.ts'
import { createRequest, verifyRequest } from '../../crypto/certificate.ts'
import { generateSiteKeys, loadSodium } from '../../crypto/identity.ts'
import { signMessage } from '../../crypto/signature.ts'
import { decodeMessage } from '../../edge-node/migration/messages.ts'
import { BATCH_HEADER_BYTES } from '../../edge-node/pages/batch.ts'
import { loadZstd, openBatch } from '../../edge-node/pages/compress.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import { rawBatch } from '../../fuzz/targets/batch.ts'
import { MigrationProgress } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { checkJson, JSON_DEPTH_MAX, z } from '../../wire/schema.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'

// What fuzzing, or the writing of its targets, has found; each as it was understood. (The muxer's are in
// test/transport/mux.test.ts.)
const test = suite('found by fuzzing')
const ID = '00112233445566778899aabbccddeeff'

test('JSON that is nested deeper than anything we say is refused before it is stored or told on', async () => {
  const text = (depth: number) => `{"migrationId":"${ID}","side":"source","phase":"x","y":${'['.repeat(depth - 1)}${']'.repeat(depth - 1)}}`
  const read = (depth: number) => checkJson(MigrationProgress, text(depth), { what: 'progress' })
  assert.ok(read(JSON_DEPTH_MAX))
  assert.is(await codeOf(() => read(JSON_DEPTH_MAX + 1)), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => read(200_000)), 'FRAME_MALFORMED')
  assert.is(
    await codeOf(() => decodeMessage(Buffer.from(`{"type":"OFFER","needs":${'['.repeat(30_000)}${']'.repeat(30_000)}}`))),
    'FRAME_MALFORMED',
  )
  // Brackets in strings nest nothing, escapes or not.
  assert.ok(checkJson(z.string(), JSON.stringify(`${'['.repeat(1000)}"\\${'{'.repeat(1000)}`), { what: 'text' }))
})

test('an error text does not grow with what a peer sent', async () => {
  const keys = Array.from({ length: 5000 }, (_, i) => `key${i}`)
  const strict = (await thrown(() =>
    checkJson(z.strictObject({}), JSON.stringify(Object.fromEntries(keys.map(key => [key, 0]))), { what: 'x' }),
  )) as GodwitError
  assert.ok(strict.message.length <= 1000)
  const spec = (await thrown(() => parseSpec(keys.map(key => `${key}: 0\n`).join('')))) as GodwitError
  assert.is(spec.code, 'VM_SPEC_INVALID')
  assert.ok(spec.message.length < 8000)
  assert.match(spec.message, /and \d+ more$/)
  assert.is(new GodwitError('USAGE', 'x'.repeat(10_000)).toJSON().message.length, 4096)
})

test('a manifest that names a stream twice is no message', async () => {
  const stream = { index: 2, records: 1, digest: 'ab'.repeat(32) }
  assert.is(
    await codeOf(() => decodeMessage(Buffer.from(JSON.stringify({ type: 'EOS', attempt: 1, streams: [stream, stream] })))),
    'FRAME_MALFORMED',
  )
  assert.ok(decodeMessage(Buffer.from(JSON.stringify({ type: 'EOS', attempt: 1, streams: [stream, { ...stream, index: 3 }] }))))
})

test('a compressed batch is one whole frame of zstd for either engine, with nothing behind it', async () => {
  const raw = rawBatch({ pages: [0, 1], zeros: [5] })
  const frame = zlib.zstdCompressSync(raw.subarray(BATCH_HEADER_BYTES), { pledgedSrcSize: raw.length - BATCH_HEADER_BYTES })
  const checked = zlib.zstdCompressSync(raw.subarray(BATCH_HEADER_BYTES), {
    pledgedSrcSize: raw.length - BATCH_HEADER_BYTES,
    params: { [zlib.constants.ZSTD_c_checksumFlag]: 1 },
  })
  const batchOf = (body: Uint8Array) => {
    const out = concatBytes(raw.subarray(0, BATCH_HEADER_BYTES), body)
    out[1] = 2
    return out
  }
  for (const name of ['node', 'portable'] as const) {
    const engine = await loadZstd(name)
    for (const good of [frame, checked])
      assert.is(Buffer.compare(openBatch(engine, batchOf(good)).body, raw.subarray(BATCH_HEADER_BYTES)), 0)
    const bad = [concatBytes(frame, Uint8Array.of(0)), concatBytes(frame, frame), concatBytes(checked, Uint8Array.of(0))]
    for (let length = 0; length < checked.length; length++) bad.push(checked.subarray(0, length))
    for (const body of bad)
      assert.is(await codeOf(() => openBatch(engine, batchOf(body))), 'FRAME_MALFORMED', `${name}: ${body.length} bytes`)
  }
})

test('a byte order mark in a name does not vanish: one request has one encoding', async () => {
  await loadSodium()
  const keys = generateSiteKeys()
  const good = createRequest(keys, { role: 'site', id: 'oslo' })
  const body = concatBytes(good.subarray(0, 5), Uint8Array.of(7, 0xef, 0xbb, 0xbf), good.subarray(6, good.length - 64))
  const marked = concatBytes(body, signMessage(keys.signSecret, 'godwit/1 request', body))
  assert.is(verifyRequest(good).id, 'oslo')
  assert.is(await codeOf(() => verifyRequest(marked)), 'CERT_MALFORMED')
})

test.run()
