// Finds the protocol version that two or more parties use (docs/reference/versions.md). Pure. Enters: the range of each
// party. Leaves: the highest version that all of them support, or VERSION_UNSUPPORTED with all ranges and the party to
// upgrade. Always holds: a version is an integer from 1 to 65535, and a range never ends before it begins; anything
// else is FRAME_MALFORMED.
import { GodwitError } from './errors.ts'
import { check, z } from './schema.ts'

export const Version = z.number().int().min(1).max(0xffff)
export const VersionRange = z
  .object({ min: Version, max: Version })
  .refine(({ min, max }) => min <= max, { path: ['max'], error: 'a range of versions ends before it begins' })
export type VersionRange = z.infer<typeof VersionRange>

export type Versions = {
  /** Of the hop between a node and the gateway: first frames and RPC. */
  link: VersionRange
  /**
   * Of a migration: the plan, and all messages between its two nodes: handshake, sealed messages, batches, manifest.
   */
  migration: VersionRange
}

/**
 * The ranges of this release. The lowest version stays supported for one more release, so that the previous release can
 * connect.
 */
export const VERSIONS: Versions = { link: { min: 1, max: 1 }, migration: { min: 1, max: 2 } }

/** Of a migration: from this version on a page of memory may travel as the name of a block of a local disk. */
export const DISK_PAGES_VERSION = 2

/** The range of a party without ranges: the first releases. */
export const FIRST_RANGE: VersionRange = { min: 1, max: 1 }

const Greeting = z.object({ version: Version, versionMax: Version.optional() })

/**
 * A range in a first frame: `version` is its lowest, so that a peer without ranges reads it as the one version.
 * `versionMax` is left out where it is the same.
 */
export const versionFields = ({ min, max }: VersionRange): { version: number; versionMax?: number } =>
  max === min ? { version: min } : { version: min, versionMax: max }

/** The range in a first frame; other fields are ignored, because later versions may have others. FRAME_MALFORMED. */
export function versionsIn(value: unknown, what: string): VersionRange {
  const { version, versionMax = version } = check(Greeting, value, { what })
  return check(VersionRange, { min: version, max: versionMax }, { what })
}

type Party = { name: string; range: VersionRange }

/** The highest version that all parties have. VERSION_UNSUPPORTED. */
export function commonVersion(what: string, parties: readonly Party[]): number {
  const version = Math.min(...parties.map(({ range }) => range.max))
  if (parties.every(({ range }) => range.min <= version)) return version
  const oldest = parties.find(({ range }) => range.max === version)!
  const ranges = parties.map(({ name, range }) => `${name} supports ${rangeText(range)}`).join(', ')
  throw new GodwitError('VERSION_UNSUPPORTED', `no common ${what} version: ${ranges}; upgrade ${oldest.name}`, {
    hint: `upgrade ${oldest.name}`,
  })
}

/**
 * The gateway's choice for a peer's first frame, which is read only for the versions: another version may have another
 * format. FRAME_MALFORMED, VERSION_UNSUPPORTED.
 */
export const linkVersion = (value: unknown, what: string, peer: string, { link }: Versions = VERSIONS): number =>
  commonVersion('link', [
    { name: peer, range: versionsIn(value, what) },
    { name: 'the gateway', range: link },
  ])

/** For a version that another party has chosen: VERSION_UNSUPPORTED unless it is in the range of this one. */
export function checkVersion(what: string, chosen: { by: string; version: number }, own: Party): void {
  const { by, version } = chosen
  if (version >= own.range.min && version <= own.range.max) return
  const oldest = version > own.range.max ? own.name : by
  const message = `${by} uses ${what} version ${version}, ${own.name} supports ${rangeText(own.range)}; upgrade ${oldest}`
  throw new GodwitError('VERSION_UNSUPPORTED', message, { hint: `upgrade ${oldest}` })
}

const rangeText = ({ min, max }: VersionRange): string => (min === max ? `${min}` : `${min} to ${max}`)
