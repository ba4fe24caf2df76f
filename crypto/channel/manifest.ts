// The manifest: how many records each stream carried, and a digest over them. The source sends it at the end; the
// target compares it with the records that it opened before it sends LOADED. It detects what no single stream can: a
// missing stream, or one replaced by a stream of another attempt.
import { GodwitError } from '../../wire/errors.ts'
import { concatBytes, u32, u64 } from '../bytes.ts'
import { hashParts } from '../hash.ts'
import { equalBytes } from '../sodium.ts'

type ManifestStream = { index: number; records: number; digest: Uint8Array }
export type Manifest = { streams: ManifestStream[] }

const DIGEST_BYTES = 32

/** BLAKE2b-256 of the manifest, streams in order of their index: it is in ownership records and in GRANT. */
export function manifestHash(manifest: Manifest): Uint8Array {
  const streams = sorted(manifest)
  return hashParts('godwit/1 manifest', 32, u32(streams.length), ...streams.map(s => concatBytes(u32(s.index), u64(s.records), s.digest)))
}

/** Throws MANIFEST_MISMATCH naming the first stream that differs, is missing, or is extra. */
export function compareManifests(expected: Manifest, actual: Manifest): void {
  const sent = sorted(expected)
  const arrived = new Map(sorted(actual).map(stream => [stream.index, stream]))
  for (const { index, records, digest } of sent) {
    const other = arrived.get(index)
    if (!other) throw new GodwitError('MANIFEST_MISMATCH', `stream ${index} was sent but not received`)
    if (other.records !== records)
      throw new GodwitError('MANIFEST_MISMATCH', `stream ${index}: ${records} records were sent, ${other.records} were received`)
    if (!equalBytes(other.digest, digest))
      throw new GodwitError('MANIFEST_MISMATCH', `stream ${index}: the received data differs from the sent data`)
    arrived.delete(index)
  }
  for (const index of arrived.keys()) throw new GodwitError('MANIFEST_MISMATCH', `stream ${index} was received but not sent`)
}

function sorted(manifest: Manifest): ManifestStream[] {
  const streams = [...manifest.streams].sort((a, b) => a.index - b.index)
  streams.forEach((stream, i) => {
    if (stream.digest.length !== DIGEST_BYTES) throw new TypeError('a stream digest is 32 bytes')
    if (i > 0 && streams[i - 1]!.index === stream.index) throw new TypeError(`stream ${stream.index} is in the manifest twice`)
  })
  return streams
}
