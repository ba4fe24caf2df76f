// What the engine remembers of each VM, one typed array for each field: 10,000 VMs are stepped in well under a
// millisecond of memory traffic.
// Always holds: an index is a VM's as long as it is here; sites are indexes into the SiteTable, -1 for none; NaN stands
// for "not so" in times.

/**
 * A literal with every column in it: an object that is filled by computed names is a dictionary to V8, and every access
 * a search.
 */
const allocate = (capacity: number) => ({
  memoryBytes: new Float64Array(capacity),
  dirtyBytesPerSecond: new Float64Array(capacity),
  sloMs: new Float64Array(capacity),
  hardLimitMs: new Float64Array(capacity),
  hysteresisMs: new Float64Array(capacity),
  rttMs: new Float64Array(capacity),
  smoothedRttMs: new Float64Array(capacity),
  seenMs: new Float64Array(capacity),
  smoothedRegretMs: new Float64Array(capacity),
  accountMsSeconds: new Float64Array(capacity),
  aboveSinceMs: new Float64Array(capacity),
  arrivedMs: new Float64Array(capacity),
  previousLeftMs: new Float64Array(capacity),
  backoffUntilMs: new Float64Array(capacity),
  readySinceMs: new Float64Array(capacity),
  dueMs: new Float64Array(capacity),
  stagedBytes: new Float64Array(capacity),
  stagedMs: new Float64Array(capacity),
  allowanceBytes: new Float64Array(capacity),
  allowanceMs: new Float64Array(capacity),
  /** What a move without a staged copy is worth, and the bandwidth for which that was worked out (0: not yet). */
  priceMsSeconds: new Float64Array(capacity),
  pricedAtBytesPerSecond: new Float64Array(capacity),
  site: new Int32Array(capacity),
  userSite: new Int32Array(capacity),
  previousSite: new Int32Array(capacity),
  movingTo: new Int32Array(capacity),
  stagingTo: new Int32Array(capacity),
  stagedSite: new Int32Array(capacity),
  candidate: new Int32Array(capacity),
  sequence: new Int32Array(capacity),
  failures: new Int32Array(capacity),
  policy: new Int32Array(capacity),
  isPinned: new Int32Array(capacity),
  gate: new Int32Array(capacity),
})
type Columns = ReturnType<typeof allocate>
type Name = keyof Columns

/** What a column holds where nothing is known; 0 where it is not named. */
const EMPTY: Partial<Record<Name, number>> = {
  sloMs: Number.NaN,
  hardLimitMs: Number.POSITIVE_INFINITY,
  rttMs: Number.NaN,
  smoothedRttMs: Number.NaN,
  seenMs: Number.NEGATIVE_INFINITY,
  aboveSinceMs: Number.NaN,
  previousLeftMs: Number.NEGATIVE_INFINITY,
  backoffUntilMs: Number.NEGATIVE_INFINITY,
  readySinceMs: Number.NaN,
  site: -1,
  userSite: -1,
  previousSite: -1,
  movingTo: -1,
  stagingTo: -1,
  stagedSite: -1,
  candidate: -1,
}

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
    for (const name of Object.keys(wider) as Name[]) wider[name].set(this.columns[name])
    this.columns = wider
    this.#capacity *= 2
  }
}

function clear(columns: Columns, index: number): void {
  for (const name of Object.keys(columns) as Name[]) columns[name][index] = EMPTY[name] ?? 0
}
