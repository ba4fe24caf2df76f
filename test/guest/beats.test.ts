// The beat reader: what an outside observer may and may not conclude from the lines of one or two consoles.
import { createWitness, parseGuestLine } from '../../guest/beats.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('beats')
const beat = (sequence: number) => `BEAT ${sequence} ${1000 + sequence * 10}\n`
const beats = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => beat(from + i))

test('every line of the guest is understood', () => {
  assert.equal(parseGuestLine('BEAT 12 3456'), { kind: 'beat', sequence: 12, guestMs: 3456 })
  assert.equal(parseGuestLine('AUDIT ok=51200 bad=1 pass=5 writes=10242 table=bad'), {
    ...{ kind: 'audit', ok: 51200, bad: 1, pass: 5, writes: 10242, tableBad: true },
  })
  assert.equal(parseGuestLine('AUDIT-FULL pages=51200 bad=0 versions=10365 ever=0 digest=9966692217680073694'), {
    ...{ kind: 'audit-full', pages: 51200, bad: 0, versions: 10365, ever: 0, digest: '9966692217680073694' },
  })
  const ready = parseGuestLine('READY pages=51200 zero=10345 duplicate=5061 text=22912 random=12882 seed=1 ms=3974')
  assert.equal([ready.kind, ready.kind === 'ready' && ready.fields['text']], ['ready', 22912])
  assert.equal(parseGuestLine('WORK writes=3 audited=5 ms=700'), { kind: 'work', writes: 3, audited: 5, guestMs: 700 })
  assert.equal(parseGuestLine('BAD page=7 why=checksum'), { kind: 'bad', text: 'BAD page=7 why=checksum' })
  assert.equal(parseGuestLine('TOUCHED pages=5 writes=9'), { kind: 'done', what: 'TOUCHED', fields: { pages: 5, writes: 9 } })
  assert.equal(parseGuestLine('AUDIT-DISK blocks=8192 bad=0 writes=1119'), { kind: 'audit-disk', blocks: 8192, bad: 0, writes: 1119 })
  assert.equal(parseGuestLine('WROTE us=812'), { kind: 'wrote', us: 812 })
  assert.equal(parseGuestLine(`${'0f'.repeat(32)}  /dev/vda`), { kind: 'disk-sum', sha256: '0f'.repeat(32) })
  for (const other of ['', 'EAT 1 2', 'BEAT 1', 'BEAT 1 2 3', '[    1.0] kernel', 'AUDIT ok=1', 'READY pages=5']) {
    assert.is(parseGuestLine(other).kind, 'other', other)
  }
})

test('a stream gives the same records however it is cut', () => {
  const text = `READY pages=5 ms=1\r\n${beats(1, 3).join('')}AUDIT ok=5 bad=0 pass=1 writes=2\nBAD page=1 why=zero\n`
  const whole = createWitness().push('a', text, 5)
  assert.is(whole.length, 6)
  for (let cut = 0; cut <= text.length; cut++) {
    const witness = createWitness()
    assert.equal([...witness.push('a', text.slice(0, cut), 5), ...witness.push('a', text.slice(cut), 5)], whole)
  }
})

test('the longest silence is the longest gap between arrivals, with the beats around it', () => {
  const witness = createWitness()
  const arrivals = [0, 10, 20, 130, 140, 155]
  arrivals.forEach((atMs, i) => void witness.push('a', beat(i + 1), atMs))
  const { longestSilenceMs, longestSilence, beats, missing } = witness.summary()
  assert.equal({ longestSilenceMs, beats, missing }, { longestSilenceMs: 110, beats: 6, missing: 0 })
  assert.equal(longestSilence, { ms: 110, atMs: 20, afterSequence: 3, beforeSequence: 4, acrossConsoles: false })
  assert.is(witness.summary(1155).longestSilenceMs, 1000, 'the silence that still goes on counts')
})

test('silences are found by the span of time they overlap', () => {
  const witness = createWitness()
  const arrivals = [0, 100, 110, 160, 170, 470]
  arrivals.forEach((atMs, i) => void witness.push('a', beat(i + 1), atMs))
  assert.is(witness.silenceBetween(105, 165)?.ms, 50)
  assert.is(witness.silenceBetween(50, 60)?.ms, 100)
  assert.is(witness.silenceBetween(0, 1000)?.ms, 300)
  assert.is(witness.silenceBetween(161, 169), undefined)
})

test('lost, late and repeated beats are counted apart', () => {
  const witness = createWitness()
  for (const sequence of [5, 6, 9, 7, 10, 10, 6]) witness.push('a', beat(sequence), sequence)
  const { missing, outOfOrder, duplicates, firstSequence, lastSequence, beats } = witness.summary()
  assert.equal(
    { missing, outOfOrder, duplicates, firstSequence, lastSequence, beats },
    {
      ...{ missing: 1, outOfOrder: 1, duplicates: 2, firstSequence: 5, lastSequence: 10, beats: 5 },
    },
  )
})

test('two consoles make one stream, and the gap between them is seen', () => {
  const witness = createWitness()
  for (const sequence of [1, 2, 3]) witness.push('source', beat(sequence), sequence * 10)
  for (const sequence of [4, 5]) witness.push('target', beat(sequence), 200 + sequence * 10)
  const { longestSilence, missing, duplicates } = witness.summary()
  assert.equal([longestSilence?.ms, longestSilence?.acrossConsoles, missing, duplicates], [210, true, 0, 0])
})

test('a line torn between two consoles at any place is put together', () => {
  const [first, torn, next] = beats(1, 3) as [string, string, string]
  for (let cut = 1; cut < torn.length; cut++) {
    const witness = createWitness()
    witness.push('source', first + torn.slice(0, cut), 10)
    witness.push('target', torn.slice(cut) + next, 50)
    const { beats, missing, duplicates } = witness.summary()
    assert.equal({ beats, missing, duplicates }, { beats: 3, missing: 0, duplicates: 0 }, `cut at ${cut}`)
  }
})

test('a bad line torn between two consoles is still bad', () => {
  const witness = createWitness()
  witness.push('source', `${beat(1)}BAD page=3 why=zero want=`, 10)
  witness.push('target', `4 have=5\n${beat(2)}`, 20)
  const { badLines, bad } = witness.summary()
  assert.equal([badLines, bad], [1, ['BAD page=3 why=zero want=4 have=5']])
})

test('a replayed ring is neither a duplicate nor a silence', () => {
  const witness = createWitness()
  for (const sequence of [1, 2, 3, 4]) witness.push('a', beat(sequence), sequence * 10)
  witness.push('b', `AT 2 1020\n${beats(3, 6).join('')}`, 90, { replayed: true })
  witness.push('b', beat(7), 95)
  const { beats: count, duplicates, missing, longestSilenceMs } = witness.summary()
  assert.equal({ count, duplicates, missing, longestSilenceMs }, { count: 7, duplicates: 0, missing: 0, longestSilenceMs: 55 })
})

test('a guest that was booted again is a restart, not duplicates', () => {
  const witness = createWitness()
  for (const sequence of [1, 2, 3, 1, 2]) witness.push('a', beat(sequence), 10)
  const { restarts, duplicates } = witness.summary()
  assert.equal({ restarts, duplicates }, { restarts: 1, duplicates: 0 })
})

test('the last audits and the first bad lines are kept, all are counted', () => {
  const witness = createWitness()
  for (let i = 0; i < 50; i++) witness.push('a', `BAD page=${i} why=zero\nAUDIT ok=${i} bad=0 pass=${i} writes=0\n`, i)
  const { badLines, bad, audit } = witness.summary()
  assert.equal([badLines, bad.length, bad[0], audit?.pass], [50, 20, 'BAD page=0 why=zero', 49])
})

test('memory stays bounded on nonsense', () => {
  const witness = createWitness()
  for (let i = 0; i < 100; i++) assert.is(witness.push('a', 'x'.repeat(10_000), i).length, 0)
  witness.push('a', `\nBEAT 1 1\nBEAT 900000000 2\n`, 200)
  assert.is(witness.summary().missing, 899_999_998)
})

test.run()
