import { judgeDisk } from '../../cli/demo/disk.ts'
import { type DriveHandoff, handoffOf, judgeDrive, reportLines } from '../../cli/demo/drive-report.ts'
import { createRoad, linkAt, ROAD_SITES } from '../../cli/demo/road.ts'
import { type DemoUser, summarize, type UserRequest } from '../../cli/demo/user.ts'
import { createView, type DemoScene, renderMap, renderScene } from '../../cli/demo/view.ts'
import { type DemoWish, parseDemo } from '../../cli/demo.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('cli: demo')

test('the words say which scene, and what is kept', () => {
  const plain: DemoWish = { scenes: ['moves', 'drive'], seed: 1, isKept: false, isJson: false }
  assert.equal(parseDemo([]), plain)
  assert.equal(parseDemo(['--short', '--json', '--keep']), { ...plain, scenes: ['moves'], isKept: true, isJson: true })
  assert.equal(parseDemo(['--drive']), { ...plain, scenes: ['drive'] })
  assert.equal(parseDemo(['--seed', '42']), { ...plain, seed: 42 })
  assert.is(parseDemo(['--help']), 'help')
})

test('words that are not understood are an error of usage', async () => {
  for (const words of [['--nonsense'], ['drive'], ['--seed'], ['--seed', 'x'], ['--seed=-1'], ['--short=yes'], ['--short', '--drive']])
    assert.is(await codeOf(() => parseDemo(words)), 'USAGE', words.join(' '))
})

test('the road passes every site, and the way to a site grows with the distance to it', () => {
  const road = createRoad({ seed: 1, driveMs: 60_000 })
  const nearest = Array.from({ length: 61 }, (_, at) => road.nearest(road.userAt(at * 1000)))
  assert.equal([...new Set(nearest)], [...ROAD_SITES], 'each once, in order')
  assert.equal([road.userAt(-1), road.userAt(1e9)], [road.userAt(0), road.userAt(60_000)])
  const start = road.userAt(0)
  assert.ok(road.rttMs(start, 'a') < road.rttMs(start, 'b') && road.rttMs(start, 'b') < road.rttMs(start, 'c'))
  assert.equal([road.siteRttMs('a', 'b'), road.siteRttMs('a', 'c'), road.siteRttMs('c', 'a')], [50, 100, 100])
  const link = linkAt(40)
  assert.is(link.delayMs, 20)
  assert.ok((link.jitterMs ?? 0) <= linkAt(8).delayMs)
})

test('the same seed is the same way, another seed another', () => {
  const ways = [1, 1, 2].map(seed => createRoad({ seed, driveMs: 1000 }).userAt(370))
  assert.equal(ways[0], ways[1])
  assert.not.equal(ways[0], ways[2])
})

test('a step of the way is as long as any other', () => {
  const road = createRoad({ seed: 3, driveMs: 1000 })
  const steps = Array.from({ length: 100 }, (_, at) => {
    const [from, to] = [road.userAt(at * 10), road.userAt(at * 10 + 10)]
    return Math.hypot(to.x - from.x, to.y - from.y)
  })
  const longest = Math.max(...steps)
  assert.ok(steps.every(step => step <= longest && step > longest * 0.8))
})

const scene = (more: Partial<DemoScene> = {}): DemoScene => ({
  user: 0.5,
  sites: [
    { name: 'a', at: 0.1, rttMs: 12.4 },
    { name: 'b', at: 0.9, rttMs: 30 },
  ],
  vmSite: 'a',
  requests: summarize([], 0),
  handoff: undefined,
  because: undefined,
  ...more,
})

test('the map shows the sites, the VM, where it goes, and the user', () => {
  assert.is(renderMap(scene(), 21), '-[a]------>-------b--')
  assert.is(renderMap(scene({ vmSite: 'b', user: 0 }), 21), '->a--------------[b]-')
  assert.match(renderMap(scene({ handoff: { from: 'a', to: 'b', phase: 'precopy' } }), 21), '(b)')
  assert.match(renderMap(scene({ user: 0.1 }), 21), '[a]>', 'a user at a site is beside it')
})

test('the view fits the terminal and says what is known', () => {
  const lines = renderScene(
    scene({ handoff: { from: 'a', to: 'b', phase: 'precopy', share: 0.5, bytes: 1 << 20 }, because: 'x'.repeat(300) }),
    70,
  )
  assert.is(lines.length, 4)
  assert.ok(lines.every(line => line.length <= 70))
  assert.match(lines[1]!, '[a] 12 ms  b 30 ms')
  assert.match(lines[3]!, /handoff a -> b: precopy \[#{12}-{12}\] 50 %/)
})

test('a terminal is drawn over, a file gets a line now and then', () => {
  for (const isTty of [true, false]) {
    let nowMs = 0
    const written: string[] = []
    const said: string[] = []
    const view = createView(
      { err: text => void written.push(text), isTty, columns: () => 80 },
      text => void said.push(text),
      () => nowMs,
      false,
    )
    for (; nowMs < 10_000; nowMs += 100) view.show(scene())
    view.note('something has happened')
    view.finish()
    assert.is(said.length, isTty ? 1 : 4)
    assert.is(written.length > 50, isTty)
    if (isTty) assert.match(written.at(-1)!, '\u001b[4A', 'four lines are taken back before the note')
  }
})

const request = (madeMs: number, answeredMs?: number, attempts = 1): UserRequest => ({ madeMs, answeredMs, attempts })

/**
 * A user who was answered in 30 ms before the handoff of 10,000 to 15,000, not at all for its last second, and in 10 ms
 * after it.
 */
function drive(more: UserRequest[] = []) {
  const requests: UserRequest[] = more
  for (let at = 0; at < 20_000; at += 50) {
    const tookMs = at < 10_000 ? 30 : at > 15_000 ? 10 : at > 14_000 ? 15_100 - at : 60
    requests.push(request(at, at + tookMs))
  }
  const user = {
    requests,
    wrong: [],
    summary: (from = 0, to = 1e9) =>
      summarize(
        requests.filter(({ madeMs }) => madeMs >= from && madeMs < to),
        1e9,
      ),
    stop: async () => {},
  } satisfies DemoUser
  const record = { source: 'a', target: 'b', outcome: 'completed', createdAt: 10_000, updatedAt: 15_000 } as MigrationRecord
  return { requests, user, handoff: handoffOf(record, user, () => 1_000) }
}

test('the report of a handoff shows what the user measured', () => {
  const { handoff } = drive()
  assert.equal([handoff.latencyBeforeMs, handoff.latencyDuringMs, handoff.latencyAfterMs], [30, 60, 10])
  assert.ok(handoff.interruptionMs > 900 && handoff.interruptionMs < 1_200)
  const lines = reportLines({ handoffs: [handoff], user: drive().user.summary(), wrong: [], requests: drive().requests })
  assert.match(lines[0]!, 'a -> b')
  assert.match(lines[1]!, '400 requests: 400 answered (0 after a retry on a new connection), 0 lost')
})

test('a disk that differs, has bad blocks, or was never written to is a problem', () => {
  const good = { blocks: 8192, bad: 0, writes: 9, inGuest: 'ab', ofFile: 'ab' }
  assert.equal(judgeDisk(good), [])
  assert.match(judgeDisk({ ...good, ofFile: 'cd' })[0]!, 'SHA-256 ab in the guest, and its file at the site has cd')
  assert.match(judgeDisk({ ...good, bad: 2 })[0]!, '2 bad blocks of 8192')
  assert.is(judgeDisk({ ...good, blocks: 0, writes: 0 }).length, 2)
})

test('fewer than two handoffs, failures, losses and wrong answers are problems', () => {
  const { handoff, requests, user } = drive()
  const judge = (handoffs: DriveHandoff[], lost: UserRequest[] = [], wrong: string[] = []) =>
    judgeDrive({ handoffs, user: user.summary(), wrong, requests: [...requests, ...lost] }, 5_000)
  assert.equal(judge([handoff, handoff]), [])
  assert.match(judge([handoff])[0]!, '1 times, expected 2')
  assert.match(judge([handoff, handoff, { ...handoff, outcome: 'failed', error: 'QEMU_LOAD: x' }])[0]!, 'ended as failed (QEMU_LOAD: x)')
  assert.match(judge([handoff, handoff], [request(12_000)])[0]!, '1 requests were lost')
  assert.match(judge([handoff, handoff], [], ['beat 3 after 5'])[0]!, 'beat 3 after 5')
  const long = { ...handoff, silenceMs: 6_000 }
  assert.equal(judge([long, long], [request(12_000)]), [], 'a pause longer than the deadline explains a loss')
  assert.match(judge([long, long], [request(18_000)])[0]!, '1 requests were lost', 'but not one at another time')
})

test.run()
