// The table of the source's conversation: every pair of state and event, and what must hold of all of them.
import {
  type ConversationEvent,
  type ConversationState,
  carries,
  conversation,
  heals,
  stepConversation,
} from '../../../edge-node/migration/conversation-states.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('conversation states')

const STATES = Object.keys(conversation) as ConversationState[]
const EVENTS: ConversationEvent[] = ['meet', 'carry', 'accept', 'settle', 'changeOver', 'quiet', 'stay', 'loss', 'streamEnd']

/** Next state and effects; '-': MIGRATION_STATE; another code: refused. The columns are EVENTS. */
const EXPECTED: Record<ConversationState, string[]> = {
  OPENING: ['OPEN', '-', '-', '-', '-', '-', '-', '-', '-'],
  OPEN: ['-', 'OFFERED', '-', '-', 'OPEN', '-', '-', 'OPEN fail', '-'],
  OFFERED: ['-', '-', 'CARRYING', '-', 'OFFERED', '-', '-', 'OFFERED fail', 'OFFERED keepError'],
  CARRYING: ['-', '-', '-', 'SETTLED', 'CHANGING meetAgain', '-', '-', 'AWAY drop reconnect', 'CARRYING lose'],
  CHANGING: ['-', '-', '-', 'SETTLED', 'CHANGING', 'CROSSING leave', 'CARRYING', 'CROSSING drop', 'CHANGING lose'],
  CROSSING: ['CARRYING', '-', '-', 'SETTLED', 'CROSSING', '-', 'AWAY reconnect', 'CROSSING', '-'],
  AWAY: ['CARRYING', '-', '-', 'SETTLED', 'AWAY', '-', '-', 'AWAY', '-'],
  SETTLED: ['STREAM_RESET', '-', '-', '-', 'SETTLED', 'SETTLED leave', 'SETTLED', 'SETTLED fail', 'SETTLED'],
}

const lead = (from: ConversationState, events: ConversationEvent[]) =>
  events.reduce((state, event) => stepConversation(state, event).state, from)

test('every pair of state and event does what the protocol says', async () => {
  for (const state of STATES) {
    for (const [i, event] of EVENTS.entries()) {
      const expected = EXPECTED[state][i]!
      const isRefused = expected === '-' || expected === 'STREAM_RESET'
      if (isRefused)
        assert.is(await codeOf(() => stepConversation(state, event)), expected === '-' ? 'MIGRATION_STATE' : expected, `${state} ${event}`)
      else {
        const { state: to, effects } = stepConversation(state, event)
        assert.is([to, ...effects].join(' '), expected, `${state} ${event}`)
      }
    }
  }
})

test('a lost meeting fails the migration exactly where no other meeting follows it', () => {
  for (const state of STATES.filter(each => each !== 'OPENING')) {
    const { state: to, effects } = stepConversation(state, 'loss')
    assert.is(effects.includes('fail'), !heals(state), state)
    assert.is(heals(to), heals(state), state)
    assert.is(carries(to), carries(state) && !heals(state), state)
  }
})

test('one attempt to meet again at a time: only CARRYING begins a change-over, and what reconnects comes from no other attempt', () => {
  const begins = (effect: string) =>
    STATES.flatMap(state => EVENTS.filter(event => effectsOf(state, event).includes(effect)).map(event => `${state} ${event}`))
  assert.equal(begins('meetAgain'), ['CARRYING changeOver'])
  assert.equal(begins('reconnect'), ['CARRYING loss', 'CROSSING stay'])
})

test('a meeting is ended once: by the event that leads out of the states in which it carries, or after LOADED', () => {
  for (const state of STATES) {
    for (const event of EVENTS) {
      const ends = effectsOf(state, event).some(effect => effect === 'drop' || effect === 'leave')
      if (ends) assert.ok((carries(state) && !carries(stepConversation(state, event).state)) || state === 'SETTLED', `${state} ${event}`)
    }
  }
})

test('from the first handshake to LOADED: without a fault, with a lost link, with a change-over, with a link lost during it', () => {
  const begun: ConversationEvent[] = ['meet', 'carry', 'accept']
  assert.is(lead('OPENING', begun), 'CARRYING')
  assert.is(lead('OPENING', [...begun, 'settle']), 'SETTLED')
  assert.is(lead('OPENING', [...begun, 'loss', 'loss', 'meet']), 'CARRYING')
  assert.is(lead('OPENING', [...begun, 'changeOver', 'quiet', 'meet']), 'CARRYING')
  assert.is(lead('OPENING', [...begun, 'changeOver', 'loss', 'stay', 'meet']), 'CARRYING')
  assert.is(lead('OPENING', [...begun, 'changeOver', 'stay', 'settle']), 'SETTLED')
})

function effectsOf(state: ConversationState, event: ConversationEvent): readonly string[] {
  const found = conversation[state][event]
  return found && 'effects' in found ? found.effects : []
}

test.run()
