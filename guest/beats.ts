// Reads the serial output of the guest program, as an observer outside the VM. Enters: chunks of text with the time of
// reading, from one console or several (source and target). Leaves: records, and a summary: the longest gap, lost
// beats, page checks, bad pages. Pure, bounded memory. Always holds: the chunks of all consoles form one stream in the
// order of the calls; a line that is split between two consoles (the VM moved within it) is joined again.

/** One line of the guest. `digest` is a string: it is too large for a number. */
type GuestLine =
  | { kind: 'beat'; sequence: number; guestMs: number }
  | { kind: 'ready'; pages: number; fields: Record<string, number> }
  | { kind: 'audit'; ok: number; bad: number; pass: number; writes: number; tableBad: boolean }
  | { kind: 'audit-full'; pages: number; bad: number; versions: number; ever: number; digest: string }
  | { kind: 'audit-disk'; blocks: number; bad: number; writes: number }
  /** SHA-256 of the whole disk, read in the guest. */
  | { kind: 'disk-sum'; sha256: string }
  /** One durable write to the disk took so long. */
  | { kind: 'wrote'; us: number }
  | { kind: 'work'; writes: number; audited: number; guestMs: number }
  | { kind: 'bad'; text: string }
  | { kind: 'done'; what: 'DIRTY' | 'TOUCHED' | 'CORRUPTED' | 'FORGOTTEN' | 'POWEROFF'; fields: Record<string, number> }
  | { kind: 'other'; text: string }

export type GuestRecord = GuestLine & { atMs: number; console: string }

export type Silence = { ms: number; atMs: number; afterSequence: number; beforeSequence: number; acrossConsoles: boolean }

export type BeatSummary = {
  beats: number
  firstSequence: number
  lastSequence: number
  missing: number
  duplicates: number
  outOfOrder: number
  /** The guest restarted its count: it was booted again. */
  restarts: number
  longestSilenceMs: number
  longestSilence?: Silence | undefined
  badLines: number
  /** The first of them, at most 20. */
  bad: string[]
  ready?: Extract<GuestLine, { kind: 'ready' }> | undefined
  audit?: Extract<GuestLine, { kind: 'audit' }> | undefined
  auditFull?: Extract<GuestLine, { kind: 'audit-full' }> | undefined
}

const LINE_CHARACTERS_MAX = 1024
const MISSING_MAX = 100_000
const BAD_KEPT_MAX = 20
/** Shorter gaps are not stored: a beat is sent every 10 ms. */
const SILENCE_KEPT_MIN_MS = 20
const SILENCES_MAX = 20_000
const DONE = ['DIRTY', 'TOUCHED', 'CORRUPTED', 'FORGOTTEN', 'POWEROFF'] as const

function numbersOf(text: string): Record<string, number> {
  return Object.fromEntries([...text.matchAll(/(\w+)=(\d+)/g)].map(([, name, value]) => [name, Number(value)]))
}

/**
 * One line without its end. Anything else than a whole line of the guest program (kernel messages, partial lines) is
 * 'other'.
 */
export function parseGuestLine(text: string): GuestLine {
  const beat = /^BEAT (\d+) (\d+)$/.exec(text)
  if (beat) return { kind: 'beat', sequence: Number(beat[1]), guestMs: Number(beat[2]) }
  const work = /^WORK writes=(\d+) audited=(\d+) ms=(\d+)$/.exec(text)
  if (work) return { kind: 'work', writes: Number(work[1]), audited: Number(work[2]), guestMs: Number(work[3]) }
  const disk = /^AUDIT-DISK blocks=(\d+) bad=(\d+) writes=(\d+)$/.exec(text)
  if (disk) return { kind: 'audit-disk', blocks: Number(disk[1]), bad: Number(disk[2]), writes: Number(disk[3]) }
  const wrote = /^WROTE us=(\d+)$/.exec(text)
  if (wrote) return { kind: 'wrote', us: Number(wrote[1]) }
  const sum = /^([0-9a-f]{64}) {2}\/dev\/vda$/.exec(text)
  if (sum) return { kind: 'disk-sum', sha256: sum[1]! }
  if (text.startsWith('BAD ')) return { kind: 'bad', text }
  const full = /^AUDIT-FULL pages=(\d+) bad=(\d+) versions=(\d+) ever=(\d+) digest=(\d+)$/.exec(text)
  if (full) {
    const [, pages, bad, versions, ever, digest] = full
    return {
      kind: 'audit-full',
      pages: Number(pages),
      bad: Number(bad),
      versions: Number(versions),
      ever: Number(ever),
      digest: digest ?? '',
    }
  }
  const audit = /^AUDIT ok=(\d+) bad=(\d+) pass=(\d+) writes=(\d+)( table=bad)?$/.exec(text)
  if (audit) {
    const [, ok, bad, pass, writes, table] = audit
    return { kind: 'audit', ok: Number(ok), bad: Number(bad), pass: Number(pass), writes: Number(writes), tableBad: table !== undefined }
  }
  if (/^READY pages=\d+ .*ms=\d+$/.test(text)) {
    const fields = numbersOf(text)
    return { kind: 'ready', pages: fields['pages'] ?? 0, fields }
  }
  const what = DONE.find(word => text === word || text.startsWith(`${word} `))
  return what ? { kind: 'done', what, fields: numbersOf(text) } : { kind: 'other', text }
}

/**
 * Counts sequence numbers in order of arrival: each is new, late (out of order) or a duplicate. Memory is bounded by
 * the missing ones.
 */
function createSequenceCount() {
  const missing = new Set<number>()
  const counts = { beats: 0, first: 0, last: 0, duplicates: 0, outOfOrder: 0, restarts: 0, forgotten: 0 }
  return {
    counts,
    missing: () => missing.size + counts.forgotten,
    /** Whether the beat is new. */
    add(sequence: number, duplicatesExpected: boolean): boolean {
      if (counts.beats === 0) counts.first = sequence
      else if (sequence === 1 && counts.last > 1 && !duplicatesExpected && !missing.has(1)) {
        counts.restarts++
        counts.last = 0
        missing.clear()
      }
      if (counts.beats > 0 && sequence <= counts.last) {
        if (missing.delete(sequence)) {
          counts.outOfOrder++
          counts.beats++
          return true
        }
        if (!duplicatesExpected) counts.duplicates++
        return false
      }
      if (counts.beats > 0)
        for (let lost = counts.last + 1; lost < sequence; lost++) {
          if (missing.size >= MISSING_MAX) {
            counts.forgotten += sequence - lost
            break
          }
          missing.add(lost)
        }
      counts.last = sequence
      counts.beats++
      return true
    },
  }
}

/** The gaps between beats, measured outside the guest. */
function createSilences() {
  const kept: Silence[] = []
  let last: { atMs: number; sequence: number; console: string } | undefined
  let longest: Silence | undefined
  return {
    longest: () => longest,
    lastAtMs: () => last?.atMs,
    add(sequence: number, atMs: number, console: string): void {
      if (last) {
        const acrossConsoles = last.console !== console
        const silence = { ms: atMs - last.atMs, atMs: last.atMs, afterSequence: last.sequence, beforeSequence: sequence, acrossConsoles }
        if (!longest || silence.ms > longest.ms) longest = silence
        if (silence.ms >= SILENCE_KEPT_MIN_MS) kept.push(silence)
        if (kept.length > SILENCES_MAX) kept.splice(0, SILENCES_MAX / 2)
      }
      last = { atMs, sequence, console }
    },
    between(fromMs: number, toMs: number): Silence | undefined {
      const within = kept.filter(({ atMs, ms }) => atMs < toMs && atMs + ms > fromMs)
      return within.reduce<Silence | undefined>((best, silence) => (best && best.ms >= silence.ms ? best : silence), undefined)
    },
  }
}

export type Witness = {
  /**
   * Text that came from a console at a time (monotonic, ms). Returns the records that it completed. `replayed`: the
   * console repeated old text (a ring buffer on connecting): its beats count as seen, not as duplicates, and do not
   * count for gaps.
   */
  push(console: string, chunk: string, atMs: number, options?: { replayed?: boolean }): GuestRecord[]
  /** The summary so far. `nowMs` includes the current gap. */
  summary(nowMs?: number): BeatSummary
  /** The longest gap that overlaps a span of time; undefined if none was longer than about two beats. */
  silenceBetween(fromMs: number, toMs: number): Silence | undefined
}

/** An observer of one guest on all its possible consoles. */
export function createWitness(): Witness {
  const sequences = createSequenceCount()
  const silences = createSilences()
  const partial = new Map<string, string>()
  const seen: Pick<BeatSummary, 'ready' | 'audit' | 'auditFull'> = {}
  const bad: string[] = []
  let badLines = 0
  let active = ''

  /** Handles a line; if it is not valid alone, it is the rest of a line of another console. */
  const lineOf = (console: string, text: string): GuestLine => {
    const parsed = parseGuestLine(text)
    const begun = active === console ? undefined : partial.get(active)
    if (parsed.kind !== 'other' || begun === undefined) return parsed
    const joined = parseGuestLine(begun + text)
    if (joined.kind === 'other') return parsed
    partial.delete(active)
    return joined
  }
  const note = (record: GuestRecord, replayed: boolean) => {
    if (record.kind === 'beat' && sequences.add(record.sequence, replayed) && !replayed)
      silences.add(record.sequence, record.atMs, record.console)
    if (record.kind === 'ready') seen.ready = record
    if (record.kind === 'audit') seen.audit = record
    if (record.kind === 'audit-full') seen.auditFull = record
    if (record.kind === 'bad' && badLines++ < BAD_KEPT_MAX) bad.push(record.text)
  }

  return {
    push(console, chunk, atMs, { replayed = false } = {}) {
      const lines = ((partial.get(console) ?? '') + chunk).split('\n')
      partial.set(console, (lines.pop() ?? '').slice(-LINE_CHARACTERS_MAX))
      const records: GuestRecord[] = []
      for (const text of lines) {
        const record = { ...lineOf(console, text.replace(/\r+$/, '')), atMs, console }
        active = console
        note(record, replayed)
        records.push(record)
      }
      if (active === '') active = console
      return records
    },
    summary(nowMs) {
      const { beats, first, last, duplicates, outOfOrder, restarts } = sequences.counts
      const since = nowMs === undefined ? 0 : nowMs - (silences.lastAtMs() ?? nowMs)
      const longestSilence = silences.longest()
      return {
        ...{ beats, firstSequence: first, lastSequence: last, missing: sequences.missing(), duplicates, outOfOrder, restarts },
        ...{ longestSilenceMs: Math.max(longestSilence?.ms ?? 0, since), longestSilence, badLines, bad: [...bad], ...seen },
      }
    },
    silenceBetween: silences.between,
  }
}
