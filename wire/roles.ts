// What a relay stream of a migration is for: its role. Pure. Enters: an index, or a role. Leaves: the other one, and
// what follows from the role.
// Always holds: no other file decides anything by an index; an index is only a stream's name in JOIN, in the key
// schedule and in the manifest. The mapping is that of migration versions 1 and 2 (versions.ts); another version may
// have another one.
import type { FrameName } from './types.ts'

/**
 * `control`: the handshake, messages, acknowledgements, QEMU's return path. `skeleton`: QEMU's migration stream without
 * the pages. `pages`: guest memory, and the local disks, whose writes the barrier before device state covers as well;
 * on as many streams as the plan names, `n` counts from 0.
 *
 * Room for later: `disk` n (a disk with streams of its own: class disks) and `frames` n (pictures of a console:
 * urgent). Each gets a row in ROLES, and indexes that no role of version 1 has.
 */
export type Role = { kind: 'control' } | { kind: 'skeleton' } | { kind: 'pages'; n: number }
type RoleKind = Role['kind']

/** Of the bytes of a relay stream: each direction has its own key and its own end. */
export type Direction = 'source-to-target' | 'target-to-source'

/**
 * What has a share of the window (edge-node/rate/shares.ts). `urgent`: control and the guest's frames. `pages`: guest
 * memory. `disks`: disk content. `standbys`: copies that no migration waits for.
 */
export type TrafficClass = 'urgent' | 'pages' | 'disks' | 'standbys'

type RoleTraits = {
  /** A frame of the next interval waits until all streams behind barriers have carried the BARRIER of this one. */
  isBehindBarriers: boolean
  /** Its bytes pass the gate (edge-node/rate/gate.ts) as this class; all classes have one window. null: no gate. */
  traffic: TrafficClass | null
  /** It is never queued behind bulk (transport/bulk.ts). */
  isUrgent: boolean
  /**
   * Its records count in the manifest, its bytes and frames in acknowledgements. A target reports the frames of these
   * streams in the order of their indexes.
   */
  isCounted: boolean
  /** What its records may contain. */
  frames: readonly FrameName[]
  /** What they may contain in addition, for a VM with local disks. */
  diskFrames: readonly FrameName[]
}

export const ROLES: Record<RoleKind, RoleTraits> = {
  control: {
    isBehindBarriers: false,
    traffic: null,
    isUrgent: true,
    isCounted: false,
    frames: ['MESSAGE', 'RETURN_PATH', 'ACK'],
    diskFrames: [],
  },
  skeleton: {
    isBehindBarriers: true,
    traffic: 'pages',
    isUrgent: false,
    isCounted: true,
    frames: ['SKELETON', 'BARRIER'],
    diskFrames: [],
  },
  pages: {
    isBehindBarriers: true,
    traffic: 'pages',
    isUrgent: false,
    isCounted: true,
    frames: ['BATCH', 'BARRIER'],
    diskFrames: ['DISK'],
  },
}

export const CONTROL: Role = { kind: 'control' }
export const SKELETON: Role = { kind: 'skeleton' }
export const pages = (n: number): Role => ({ kind: 'pages', n })

const CONTROL_INDEX = 0
const SKELETON_INDEX = 1
const FIRST_PAGES_INDEX = 2

export const traitsOf = ({ kind }: Role): RoleTraits => ROLES[kind]

/** What the records of a stream may contain. */
export const framesOf = (role: Role, hasDisks = false): FrameName[] => {
  const { frames, diskFrames } = traitsOf(role)
  return hasDisks ? [...frames, ...diskFrames] : [...frames]
}

export function indexOf(role: Role): number {
  if (role.kind === 'control') return CONTROL_INDEX
  return role.kind === 'skeleton' ? SKELETON_INDEX : FIRST_PAGES_INDEX + role.n
}

export function roleAt(index: number): Role {
  if (index === CONTROL_INDEX) return CONTROL
  return index === SKELETON_INDEX ? SKELETON : pages(index - FIRST_PAGES_INDEX)
}

/** All streams of a migration, in the order of their indexes. */
export const rolesOf = (pageStreams: number): Role[] => [CONTROL, SKELETON, ...Array.from({ length: pageStreams }, (_, n) => pages(n))]

/** The data streams: they carry the VM from source to target. */
export const countedRoles = (pageStreams: number): Role[] => rolesOf(pageStreams).filter(role => traitsOf(role).isCounted)

export const behindBarriers = (pageStreams: number): Role[] => rolesOf(pageStreams).filter(role => traitsOf(role).isBehindBarriers)

export const isControl = (index: number): boolean => roleAt(index).kind === 'control'

/** For the choice of a connection (transport/bulk.ts). `index` spreads the streams over several connections. */
export type Placing = { isUrgent: boolean; index: number }
export const placingOf = (index: number): Placing => ({ isUrgent: traitsOf(roleAt(index)).isUrgent, index })
