// Who may send what here.
import { checkAccept, fits } from '../../../edge-node/migration/accept.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('accept rules')
const plan = { source: 'berlin-2', vm: 'web-7', target: 'here' }

test('a star stands for any characters, and nothing else is special', () => {
  for (const [pattern, name] of [
    ['*', 'x'],
    ['web-7', 'web-7'],
    ['web-*', 'web-7'],
    ['*-7', 'web-7'],
    ['w*b*7', 'web-7'],
    ['web-7*', 'web-7'],
    ['a*a', 'aa'],
  ] as const)
    assert.ok(fits(pattern, name), `${pattern} ${name}`)
  for (const [pattern, name] of [
    ['web', 'web-7'],
    ['web-*', 'db-7'],
    ['a*a', 'a'],
    ['w*x*7', 'web-7'],
    ['*b*b', 'web'],
  ] as const)
    assert.not(fits(pattern, name), `${pattern} ${name}`)
})

test('without rules everything is welcome; with rules, only what one of them names', async () => {
  checkAccept(undefined, plan)
  checkAccept([{ from: ['berlin-*'], vms: ['web-*'] }], plan)
  assert.is(await codeOf(() => checkAccept([], plan)), 'MIGRATION_DENIED')
  assert.is(await codeOf(() => checkAccept([{ from: ['paris-*'], vms: ['*'] }], plan)), 'MIGRATION_DENIED')
  assert.is(await codeOf(() => checkAccept([{ from: ['*'], vms: ['db-*'] }], plan)), 'MIGRATION_DENIED')
  assert.is(
    await codeOf(() =>
      checkAccept(
        [
          { from: ['berlin-*'], vms: ['db-*'] },
          { from: ['paris-*'], vms: ['web-*'] },
        ],
        plan,
      ),
    ),
    'MIGRATION_DENIED',
    'one rule must fit as a whole',
  )
})

test.run()
