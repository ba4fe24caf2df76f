// The manifest: how many records each stream carried, and the digest over them. The source sends it when all is sent; the target compares it with what it
// opened before it says LOADED. It catches what no single stream can: a stream that never came, or one swapped for that of another attempt.
import { GodwitError } from '../wire/errors.ts'
import { concatBytes, fromHex, toHex, u32, u64 } from './bytes.ts'
import { hashParts } from './hash.ts'
import { equalBytes } from './sodium.ts'

export type ManifestStream = { index: number; records: number; digest: Uint8Array }
export type Manifest = { streams: ManifestStream[] }
/** As it travels in a MESSAGE. */
export type ManifestJson = { streams: { index: number; records: number; digest: string }[] }

const DIGEST_BYTES = 32
export const MANIFEST_STREAMS_MAX = 1024

/** BLAKE2b-256 of the manifest, streams in order of their index: what ownership records and GRANT carry. */
export function manifestHash(manifest: Manifest): Uint8Array {
  const streams = sorted(manifest)
  return hashParts('godwit/1 manifest', 32, u32(streams.length), ...streams.map(s => concatBytes(u32(s.index), u64(s.records), s.digest)))
}

/** Throws MANIFEST_MISMATCH naming the first stream that differs, is missing, or is one too many. */
export function compareManifests(expected: Manifest, actual: Manifest): void {
  const sent = sorted(expected)
  const arrived = new Map(sorted(actual).map(stream => [stream.index, stream]))
  for (const { index, records, digest } of sent) {
    const other = arrived.get(index)
    if (!other) throw new GodwitError('MANIFEST_MISMATCH', `stream ${index} was sent, but did not arrive`)
    if (other.records !== records)
      throw new GodwitError('MANIFEST_MISMATCH', `stream ${index}: ${records} records were sent, ${other.records} arrived`)
    if (!equalBytes(other.digest, digest)) throw new GodwitError('MANIFEST_MISMATCH', `stream ${index}: what arrived is not what was sent`)
    arrived.delete(index)
  }
  for (const index of arrived.keys()) throw new GodwitError('MANIFEST_MISMATCH', `stream ${index} arrived, but was not sent`)
}

export const manifestToJson = (manifest: Manifest): ManifestJson => ({
  streams: sorted(manifest).map(({ index, records, digest }) => ({ index, records, digest: toHex(digest) })),
})

/** Reads what a peer sent. Throws FRAME_MALFORMED. */
export function manifestFromJson(value: unknown): Manifest {
  const streams = (value as ManifestJson | null | undefined)?.streams
  if (!Array.isArray(streams) || streams.length > MANIFEST_STREAMS_MAX) throw malformed('streams')
  const manifest = { streams: streams.map(readStream) }
  if (new Set(manifest.streams.map(stream => stream.index)).size !== streams.length) throw malformed('a stream named twice')
  return manifest
}

function readStream(value: unknown): ManifestStream {
  const { index, records, digest } = (value ?? {}) as Record<string, unknown>
  if (!isCount(index, 0xffff) || !isCount(records, Number.MAX_SAFE_INTEGER)) throw malformed('index or records')
  if (typeof digest !== 'string' || !/^[0-9a-f]{64}$/.test(digest)) throw malformed('digest')
  return { index, records, digest: fromHex(digest) }
}

const isCount = (value: unknown, max: number): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= max
const malformed = (what: string) => new GodwitError('FRAME_MALFORMED', `the manifest cannot be read: ${what}`)

function sorted(manifest: Manifest): ManifestStream[] {
  const streams = [...manifest.streams].sort((a, b) => a.index - b.index)
  streams.forEach((stream, i) => {
    if (stream.digest.length !== DIGEST_BYTES) throw new TypeError('a stream digest is 32 bytes')
    if (i > 0 && streams[i - 1]!.index === stream.index) throw new TypeError(`stream ${stream.index} is in the manifest twice`)
  })
  return streams
}
