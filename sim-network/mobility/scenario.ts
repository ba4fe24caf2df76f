// A mobility scenario written by a person (YAML). Enters: text. Leaves: a checked scenario with all defaults, or
// CONFIG_INVALID with the line. Hierarchy: zones contain sites, sites contain cells. All random values follow from
// `seed`; times are virtual. Pure.
import { parseYaml } from '../../ops/yaml.ts'
import { GodwitError } from '../../wire/errors.ts'
import { z } from '../../wire/schema.ts'

const SITES_MAX = 1000
const CELLS_MAX = 20_000
const USERS_MAX = 1_000_000

const amount = z.number().finite().nonnegative()
const positive = z.number().finite().positive()
const name = z.string().regex(/^[a-z0-9-]{1,64}$/, 'expected 1 to 64 of a-z, 0-9 and -')
const Place = z.strictObject({ lat: z.number().min(-85).max(85), lon: z.number().min(-180).max(180) })
/** One value, or [low, high]: drawn uniformly for each user or VM. */
const range = (of: z.ZodType<number>) =>
  z
    .union([of.transform((value): [number, number] => [value, value]), z.tuple([of, of])])
    .refine(([low, high]) => low <= high, 'low above high')

const Cell = z.strictObject({ name: name.optional(), ...Place.shape, dbm: z.number().min(-30).max(80).default(46) })
const Site = z.strictObject({
  name,
  ...Place.shape,
  /** Limit of parallel migrations; default: that of the policy. */
  tokens: z.number().int().min(1).max(1000).optional(),
  linkMbit: positive.optional(),
  /** Default: one cell, at the site. */
  cells: z.array(Cell).min(1).max(256).optional(),
})
const Zone = z.strictObject({ name, sites: z.array(Site).min(1).max(SITES_MAX) })

/** Sites in a grid, neighbours in square zones, cells placed randomly around each. */
const Grid = z.strictObject({
  origin: Place,
  columns: z.number().int().min(1).max(100),
  rows: z.number().int().min(1).max(100),
  pitchMeters: positive.default(1200),
  /** Width and height of a zone, in sites. */
  zoneSites: z.number().int().min(1).max(100).default(3),
  cellsPerSite: z.number().int().min(1).max(64).default(3),
})
/**
 * A new site where a trace is farther than this from all sites so far; each recorded cell belongs to the site nearest
 * to its service area.
 */
const AlongTraces = z.strictObject({ spacingMeters: positive.default(1200), zoneMeters: positive.default(3000) })

const Network = z.strictObject({
  /** Round trip from a user to the site of its cell, without load. */
  accessMs: amount.default(10),
  /** Round trip in fibre, including detours of routes. */
  fibreMsPerKm: amount.default(0.015),
  /** Router delay between two sites of a zone, and of different zones: added to the RTT. */
  sameZoneMs: amount.default(5),
  otherZoneMs: amount.default(11),
  /** Added at a site for each user beyond the first `loadFreeUsers`. */
  loadMsPerUser: amount.default(0),
  loadFreeUsers: z.number().int().nonnegative().default(0),
  /** Share of seconds with a spike, and its mean. */
  spikeShare: z.number().min(0).max(1).default(0.01),
  spikeMs: amount.default(30),
  linkMbit: positive.default(1000),
})

const Radio = z.strictObject({
  shadowingDb: amount.default(6),
  decorrelationMeters: positive.default(50),
  /** A3 (3GPP TS 38.331, 5.5.4.4): a neighbour is better by this ... */
  hysteresisDb: amount.default(3),
  offsetDb: z.number().default(0),
  /** ... for this long. */
  triggerMs: amount.default(256),
})

const UserGroup = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('waypoints'),
    name: name.optional(),
    count: z.number().int().min(1).max(USERS_MAX).default(1),
    path: z.array(Place).min(2).max(1000),
    speedMps: range(positive).default([10, 14]),
    /** Behaviour at the end of the path. */
    end: z.enum(['loop', 'reverse', 'stay']).default('reverse'),
    /** Users begin anywhere on the path instead of at its start. */
    isSpread: z.boolean().default(false),
  }),
  z.strictObject({
    kind: z.literal('random-waypoint'),
    name: name.optional(),
    count: z.number().int().min(1).max(USERS_MAX),
    /** Default: the box around all sites. */
    area: z.strictObject({ southWest: Place, northEast: Place }).optional(),
    speedMps: range(positive).default([1, 15]),
    pauseS: range(amount).default([0, 300]),
    /** Users follow streets with this distance (one leg along each axis) instead of straight lines. */
    streetMeters: positive.optional(),
  }),
  z.strictObject({
    kind: z.literal('replay'),
    name: name.optional(),
    /** Number of parallel users; each replays one trace after the other, with a new VM for each. */
    count: z.number().int().min(1).max(10_000).default(1),
  }),
])
export type UserGroup = z.output<typeof UserGroup>

const at = { atS: amount }
const Event = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('site-down'), ...at, site: name }),
  z.strictObject({ kind: z.literal('site-up'), ...at, site: name }),
  /** Adds to the RTT of every path to and from a site; 0 removes it. */
  z.strictObject({ kind: z.literal('latency'), ...at, site: name, addMs: amount }),
  /** Adds to the access latency of a site's users. */
  z.strictObject({ kind: z.literal('load'), ...at, site: name, addMs: amount }),
  /** Sends a share of a group's users to a place at the same time. */
  z.strictObject({
    kind: z.literal('go'),
    ...at,
    group: name,
    to: Place,
    spreadMeters: amount.default(200),
    speedMps: positive.default(14),
    share: z.number().min(0).max(1).default(1),
  }),
])
export type ScenarioEvent = z.output<typeof Event>

const Vm = z.strictObject({
  memoryMiB: range(positive).default([1024, 2048]),
  dirtyMiBps: range(amount).default([4, 40]),
  sloMs: positive.optional(),
  hardLimitMs: positive.optional(),
})

export const Scenario = z
  .strictObject({
    version: z.literal(1),
    name,
    description: z.string().max(2000).optional(),
    seed: z.number().int().default(1),
    stepMs: z.number().int().min(100).max(5000).default(1000),
    network: Network.prefault({}),
    radio: Radio.prefault({}),
    zones: z.array(Zone).min(1).optional(),
    grid: Grid.optional(),
    alongTraces: AlongTraces.optional(),
    users: z.array(UserGroup).min(1).max(64),
    vm: Vm.prefault({}),
    events: z.array(Event).max(10_000).default([]),
    /** Settings of the handoff policy that differ from the defaults; the caller checks them. */
    policy: z.record(z.string(), z.unknown()).default({}),
  })
  .refine(({ zones, grid, alongTraces }) => [zones, grid, alongTraces].filter(Boolean).length === 1, {
    message: 'expected exactly one of zones, grid and alongTraces',
    path: ['zones'],
  })
  .refine(({ users }) => users.reduce((sum, { count }) => sum + count, 0) <= USERS_MAX, {
    message: `at most ${USERS_MAX} users`,
    path: ['users'],
  })
  .refine(
    ({ zones = [] }) => zones.reduce((sum, zone) => sum + zone.sites.reduce((n, { cells = [] }) => n + cells.length, 0), 0) <= CELLS_MAX,
    {
      message: `at most ${CELLS_MAX} cells`,
      path: ['zones'],
    },
  )
export type Scenario = z.output<typeof Scenario>

/**
 * The scenario of a YAML text. CONFIG_INVALID names the field, its line and what was expected; `what` names the text.
 */
export function parseScenario(text: string, what = 'scenario'): Scenario {
  const { value, lineOf } = parseYaml(text, { what })
  const result = Scenario.safeParse(value)
  if (result.success) return result.data
  const issue = result.error.issues[0]
  const path = (issue?.path ?? []).map(part => (typeof part === 'symbol' ? String(part) : part))
  const line = lineOf(path)
  throw new GodwitError(
    'CONFIG_INVALID',
    `${what}${line ? `, line ${line}` : ''}: ${path.join('.') || 'scenario'}: ${issue?.message ?? 'invalid'}`,
  )
}

/** Whether it needs traces to run. */
export const needsTraces = ({ users, alongTraces }: Scenario): boolean =>
  alongTraces !== undefined || users.some(({ kind }) => kind === 'replay')
