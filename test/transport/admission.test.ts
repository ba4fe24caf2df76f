import { createAdmission, placeOf } from '../../transport/admission.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('transport: admission')

test('one place cannot take all; each is given back once', () => {
  const door = createAdmission({ total: 5, perAddress: 2 })
  const leaves = ['1.1.1.1:1', '1.1.1.1:2', '1.1.1.1:3', '2.2.2.2:1', '2.2.2.2:9', '3.3.3.3:1', '4.4.4.4:1'].map(from => door.enter(from))
  assert.equal(
    leaves.map(leave => leave !== undefined),
    [true, true, false, true, true, true, false],
  )
  leaves[0]?.()
  leaves[0]?.()
  assert.is(door.count, 4)
  assert.ok(door.enter('1.1.1.1:4'))
  assert.not.ok(door.enter('1.1.1.1:5'))
})

test('a place is an IPv4 address or an IPv6 /64, however it is written', () => {
  const same = [
    ['1.2.3.4', '1.2.3.4:500', '::ffff:1.2.3.4', '[::ffff:1.2.3.4]:77', '::ffff:1.2.3.4:9'],
    ['2001:db8:1:2::1', '[2001:db8:1:2:3:4:5:6]:443', '2001:DB8:1:2:ffff::', '[2001:0db8:1:2::9%eth0]:1'],
    ['::1', '[::1]:9'],
    ['memory:1', 'memory:2'],
  ]
  const places = same.map(group => new Set(group.map(placeOf)))
  for (const [i, group] of places.entries()) assert.is(group.size, 1, `${same[i]}: ${[...group]}`)
  assert.is(new Set(places.flatMap(group => [...group])).size, same.length)
})

test.run()
