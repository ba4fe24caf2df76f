// The roles of relay streams: the table, which docs/reference/protocol.md shows as well, and which index has which
// role.
import { readFileSync } from 'node:fs'
import { INDEX_MAX, STREAMS_MAX } from '../../wire/control.ts'
import {
  behindBarriers,
  CONTROL,
  countedRoles,
  framesOf,
  indexOf,
  isControl,
  pages,
  placingOf,
  ROLES,
  type Role,
  roleAt,
  rolesOf,
  SKELETON,
  traitsOf,
} from '../../wire/roles.ts'
import { FRAME, type FrameName } from '../../wire/types.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('wire: roles')

test('the indexes of migration version 1: 0 is control, 1 the skeleton, pages begin at 2', () => {
  const today: [number, Role][] = [
    [0, CONTROL],
    [1, SKELETON],
    [2, pages(0)],
    [3, pages(1)],
    [5, pages(3)],
    [129, pages(127)],
  ]
  for (const [index, role] of today) {
    assert.is(indexOf(role), index)
    assert.equal(roleAt(index), role)
  }
})

test('every index that a JOIN may have has one role, and the role has that index', () => {
  for (let index = 0; index <= INDEX_MAX; index++) assert.is(indexOf(roleAt(index)), index)
  assert.ok(rolesOf(STREAMS_MAX).every(role => indexOf(role) <= INDEX_MAX))
})

test('the streams of a migration are those of its plan, in the order of their indexes', () => {
  for (const pageStreams of [1, 4, STREAMS_MAX]) {
    const data = Array.from({ length: pageStreams + 1 }, (_, i) => 1 + i)
    assert.equal(rolesOf(pageStreams).map(indexOf), [0, ...data])
    assert.equal(countedRoles(pageStreams).map(indexOf), data, 'acknowledgements and the manifest count skeleton, then pages')
    assert.equal(behindBarriers(pageStreams).map(indexOf), data)
  }
})

test('each role has what the protocol gives it', () => {
  assert.equal(traitsOf(CONTROL), {
    isBehindBarriers: false,
    traffic: null,
    isUrgent: true,
    isCounted: false,
    frames: ['MESSAGE', 'RETURN_PATH', 'ACK'],
    diskFrames: [],
  })
  const data = { isBehindBarriers: true, traffic: 'pages', isUrgent: false, isCounted: true }
  assert.equal(traitsOf(SKELETON), { ...data, frames: ['SKELETON', 'BARRIER'], diskFrames: [] })
  assert.equal(traitsOf(pages(7)), { ...data, frames: ['BATCH', 'BARRIER'], diskFrames: ['DISK'] })
  assert.equal(framesOf(pages(7)), ['BATCH', 'BARRIER'])
  assert.equal(framesOf(pages(7), true), ['BATCH', 'BARRIER', 'DISK'], 'of a VM with local disks')
  assert.equal(framesOf(SKELETON, true), ['SKELETON', 'BARRIER'])
})

test('every frame that travels inside records is allowed on some stream, and no other is', () => {
  const inside = (Object.keys(FRAME) as FrameName[]).filter(name => FRAME[name] >= 64)
  const allowed = new Set(Object.values(ROLES).flatMap(({ frames, diskFrames }) => [...frames, ...diskFrames]))
  assert.equal([...allowed].sort(), inside.sort())
})

test('only the control stream is urgent; the others are spread by their indexes', () => {
  assert.equal(placingOf(0), { isUrgent: true, index: 0 })
  assert.equal(placingOf(1), { isUrgent: false, index: 1 })
  assert.equal(placingOf(9), { isUrgent: false, index: 9 })
  assert.equal([isControl(0), isControl(1), isControl(2)], [true, false, false])
})

test('docs/reference/protocol.md has the same table', () => {
  const text = readFileSync(new URL('../../docs/reference/protocol.md', import.meta.url), 'utf8')
  const lines = text.slice(text.indexOf('| role | index |')).split('\n').slice(2)
  const rows = lines.slice(0, lines.indexOf('')).map(line => line.slice(2, -2).split(' | '))
  const yes = (is: boolean) => (is ? 'yes' : 'no')
  const expected = (
    [
      ['control', CONTROL, '0'],
      ['skeleton', SKELETON, '1'],
      ['pages n', pages(0), '2 + n'],
    ] as const
  ).map(([name, role, index]) => {
    const { isBehindBarriers, traffic, isUrgent, isCounted } = traitsOf(role)
    return [name, index, framesOf(role, true).join(', '), yes(isBehindBarriers), traffic ?? 'none', yes(isUrgent), yes(isCounted)]
  })
  assert.equal(rows, expected)
})

test.run()
