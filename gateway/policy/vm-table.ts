// What the engine remembers of each VM, one typed array for each field: 10,000 VMs are stepped in well under a millisecond of memory traffic.
// Always holds: an index is a VM's as long as it is here; sites are indexes into the SiteTable, -1 for none; NaN stands for "not so" in times.

const FLOATS = [
  'memoryBytes',
  'dirtyBytesPerSecond',
  'sloMs',
  'hardLimitMs',
  'hysteresisMs',
  'rttMs',
  'smoothedRttMs',
  'seenMs',
  'smoothedRegretMs',
  'accountMsSeconds',
  'aboveSinceMs',
  'arrivedMs',
  'previousLeftMs',
  'backoffUntilMs',
  'readySinceMs',
  'dueMs',
  'stagedBytes',
  'stagedMs',
  'allowanceBytes',
  'allowanceMs',
] as const
const SITES = ['site', 'userSite', 'previousSite', 'movingTo', 'stagingTo', 'stagedSite', 'candidate'] as const
const COUNTS = ['sequence', 'failures', 'policy', 'isPinned', 'gate'] as const

type Columns = Record<(typeof FLOATS)[number], Float64Array> &
  Record<(typeof SITES)[number], Int32Array> &
  Record<(typeof COUNTS)[number], Int32Array>

export class VmTable {
  readonly names: (string | undefined)[] = []
  columns: Columns = allocate(64)
  readonly #indexes = new Map<string, number>()
  readonly #free: number[] = []
  #capacity = 64

  /** One past the highest index in use. */
  get end(): number {
    return this.names.length
  }

  get count(): number {
    return this.#indexes.size
  }

  find(name: string): number | undefined {
    return this.#indexes.get(name)
  }

  add(name: string): number {
    const index = this.#free.pop() ?? this.names.length
    if (index === this.#capacity) this.#grow()
    this.names[index] = name
    this.#indexes.set(name, index)
    clear(this.columns, index)
    return index
  }

  remove(index: number): void {
    const name = this.names[index]
    if (name === undefined) throw new Error(`no VM at ${index}`)
    this.#indexes.delete(name)
    this.names[index] = undefined
    this.#free.push(index)
    clear(this.columns, index)
  }

  #grow(): void {
    const wider = allocate(this.#capacity * 2)
    for (const name of [...FLOATS, ...SITES, ...COUNTS]) wider[name].set(this.columns[name])
    this.columns = wider
    this.#capacity *= 2
  }
}

function allocate(capacity: number): Columns {
  const columns: Record<string, Float64Array | Int32Array> = {}
  for (const name of FLOATS) columns[name] = new Float64Array(capacity)
  for (const name of [...SITES, ...COUNTS]) columns[name] = new Int32Array(capacity)
  return columns as Columns
}

const EMPTY: Partial<Record<(typeof FLOATS)[number], number>> = {
  sloMs: Number.NaN,
  hardLimitMs: Number.POSITIVE_INFINITY,
  rttMs: Number.NaN,
  smoothedRttMs: Number.NaN,
  seenMs: Number.NEGATIVE_INFINITY,
  aboveSinceMs: Number.NaN,
  previousLeftMs: Number.NEGATIVE_INFINITY,
  backoffUntilMs: Number.NEGATIVE_INFINITY,
  readySinceMs: Number.NaN,
}

function clear(columns: Columns, index: number): void {
  for (const name of FLOATS) columns[name][index] = EMPTY[name] ?? 0
  for (const name of SITES) columns[name][index] = -1
  for (const name of COUNTS) columns[name][index] = 0
}
