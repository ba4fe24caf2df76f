// Removes secrets from a text. Pure.

/** The text with every user name and password of a URL in it replaced: `mqtt://***@host`. */
export const withoutCredentials = (text: string): string => text.replace(/:\/\/[^\s/?#"'<>]*@/g, '://***@')

/** Whether a URL contains a user name or a password. */
export const hasCredentials = (url: string): boolean => withoutCredentials(url) !== url
