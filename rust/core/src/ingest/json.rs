//! A pull parser for one record: text borrowed from the input, nothing recursive, one pass.
//!
//! It accepts what Python's `json` accepts (RFC 8259 plus `NaN` and `Infinity`, which `json.dump` writes),
//! because that is what pools are made and read with.

use std::borrow::Cow;
use std::mem;

use super::special;

/// Deeper records are set aside: Python's `json`, for one, cannot read them.
pub(super) const MAX_DEPTH: usize = 1000;

/// Text that is not JSON: what should stand at byte `at` of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) expected: &'static str,
}

type Parse<T> = Result<T, Fault>;

/// A position in the text of one record.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// Where texts with escapes are decoded, if it is as long as the rest of the record.
    room: &'a mut [u8],
    /// Closing brackets that a skipped value still needs.
    closers: Vec<u8>,
    /// A `\u` escape named half of a surrogate pair: valid JSON, but no text.
    pub(super) lone_surrogate: bool,
    /// The record is nested deeper than [`MAX_DEPTH`].
    pub(super) too_deep: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self::with_room(text, &mut [])
    }

    /// Decodes texts into `room`, which is as long as the record, so that none of them is allocated.
    pub(super) fn with_room(text: &'a str, room: &'a mut [u8]) -> Self {
        Self {
            text,
            at: 0,
            depth: 0,
            room,
            closers: Vec::new(),
            lone_surrogate: false,
            too_deep: false,
        }
    }

    /// Returns the next byte that is not white space, and moves to it.
    pub(super) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            if !is_space(byte) {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Checks that nothing follows.
    pub(super) fn end(&mut self) -> Parse<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.fault("the end of the record"),
        }
    }

    /// Reads an object, calling `member` at each value; it must read or skip the value.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Parse<()>,
    ) -> Parse<()> {
        self.expect(b'{', "'{'")?;
        self.depth += 1;
        if !self.eat(b'}') {
            loop {
                let key = self.key()?;
                member(self, key)?;
                if self.eat(b',') {
                    continue;
                }
                self.expect(b'}', "',' or '}' after a value")?;
                break;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array, calling `element` at each value; it must read or skip the value.
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Parse<()>) -> Parse<()> {
        self.expect(b'[', "'['")?;
        self.depth += 1;
        if !self.eat(b']') {
            loop {
                element(self)?;
                if self.eat(b',') {
                    continue;
                }
                self.expect(b']', "',' or ']' after a value")?;
                break;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a string; borrowed where it holds no escape or there is room.
    pub(super) fn string(&mut self) -> Parse<Cow<'a, str>> {
        self.expect(b'"', "a string")?;
        let (first, end) = self.plain_text()?;
        if end == b'"' {
            return Ok(Cow::Borrowed(first));
        }
        // No escape is shorter than what it stands for.
        let most = first.len() + self.text.len() - self.at;
        if self.room.len() < most {
            let mut text = String::with_capacity(first.len() * 2);
            self.decode(first, |part| text.push_str(part))?;
            return Ok(Cow::Owned(text));
        }
        let room = mem::take(&mut self.room);
        let mut length = 0;
        self.decode(first, |part| {
            room[length..length + part.len()].copy_from_slice(part.as_bytes());
            length += part.len();
        })?;
        let (text, rest) = room.split_at_mut(length);
        self.room = rest;
        // SAFETY: it is made of whole texts.
        Ok(Cow::Borrowed(unsafe { str::from_utf8_unchecked(text) }))
    }

    /// Reads the rest of a string from its first escape on, and gives its parts to `put`, `first` before them.
    fn decode(&mut self, first: &str, mut put: impl FnMut(&str)) -> Parse<()> {
        put(first);
        loop {
            put(self.escape()?.encode_utf8(&mut [0; 4]));
            let (next, end) = self.plain_text()?;
            put(next);
            if end == b'"' {
                return Ok(());
            }
        }
    }

    /// Reads a number and returns it as it is written.
    pub(super) fn number(&mut self) -> Parse<&'a str> {
        let start = self.at;
        if self.next_is(b'-') {
            self.at += 1;
        }
        if start != self.at && self.next_is(b'I') {
            self.word("Infinity")?;
            return Ok(&self.text[start..self.at]);
        }
        if self.next_is(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.next_is(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if self.next_is(b'e') || self.next_is(b'E') {
            self.at += 1;
            if self.next_is(b'+') || self.next_is(b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    /// Checks and passes any value, without recursion.
    pub(super) fn skip(&mut self) -> Parse<()> {
        self.closers.clear();
        loop {
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    if !self.eat(b'}') {
                        self.open(b'}');
                        self.pass_key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    if !self.eat(b']') {
                        self.open(b']');
                        continue;
                    }
                }
                Some(b'"') => self.pass_string()?,
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                }
                Some(b't') => self.word("true")?,
                Some(b'f') => self.word("false")?,
                Some(b'n') => self.word("null")?,
                Some(b'N') => self.word("NaN")?,
                Some(b'I') => self.word("Infinity")?,
                _ => return self.fault("a value"),
            }
            if !self.close()? {
                return Ok(());
            }
        }
    }

    /// After a value: closes what ends here; says whether another value follows.
    fn close(&mut self) -> Parse<bool> {
        while let Some(&closer) = self.closers.last() {
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    if closer == b'}' {
                        self.pass_key()?;
                    }
                    return Ok(true);
                }
                Some(byte) if byte == closer => {
                    self.at += 1;
                    self.closers.pop();
                }
                _ if closer == b'}' => return self.fault("',' or '}' after a value"),
                _ => return self.fault("',' or ']' after a value"),
            }
        }
        Ok(false)
    }

    fn open(&mut self, closer: u8) {
        self.closers.push(closer);
        self.too_deep |= self.depth + self.closers.len() > MAX_DEPTH;
    }

    fn key(&mut self) -> Parse<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return self.fault("a key in quotes");
        }
        let key = self.string()?;
        self.expect(b':', "':' after a key")?;
        Ok(key)
    }

    fn pass_key(&mut self) -> Parse<()> {
        if self.peek() != Some(b'"') {
            return self.fault("a key in quotes");
        }
        self.pass_string()?;
        self.expect(b':', "':' after a key")
    }

    fn pass_string(&mut self) -> Parse<()> {
        self.expect(b'"', "a string")?;
        while self.plain_text()?.1 != b'"' {
            self.escape()?;
        }
        Ok(())
    }

    /// Reads up to and including the next quote or backslash; returns the text before it, and which it was.
    fn plain_text(&mut self) -> Parse<(&'a str, u8)> {
        let rest = &self.text.as_bytes()[self.at..];
        let Some(length) = special::find(rest) else {
            self.at = self.text.len();
            return self.fault("'\"' at the end of a string");
        };
        if rest[length] < 0x20 {
            self.at += length;
            return self.fault("no control character inside a string");
        }
        let text = &self.text[self.at..self.at + length];
        self.at += length + 1;
        Ok((text, rest[length]))
    }

    /// Reads what follows a backslash.
    fn escape(&mut self) -> Parse<char> {
        let Some(&byte) = self.text.as_bytes().get(self.at) else {
            return self.fault("an escape after '\\'");
        };
        let character = match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return self.fault("one of \" \\ / b f n r t u after '\\'"),
        };
        self.at += 1;
        Ok(character)
    }

    fn unicode_escape(&mut self) -> Parse<char> {
        let first = self.hex(self.at + 1)?;
        self.at += 5;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        let is_high = first < 0xdc00;
        if is_high && self.text.as_bytes()[self.at..].starts_with(b"\\u") {
            let second = self.hex(self.at + 2)?;
            if (0xdc00..0xe000).contains(&second) {
                self.at += 6;
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
        }
        self.lone_surrogate = true;
        Ok(char::REPLACEMENT_CHARACTER)
    }

    /// Reads four hexadecimal digits at `start`.
    fn hex(&self, start: usize) -> Parse<u32> {
        let mut code = 0;
        for at in start..start + 4 {
            let digit = self
                .text
                .as_bytes()
                .get(at)
                .and_then(|&byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else {
                let expected = "four hexadecimal digits after '\\u'";
                return Err(Fault { at, expected });
            };
            code = code * 16 + digit;
        }
        Ok(code)
    }

    fn digits(&mut self) -> Parse<()> {
        let rest = &self.text.as_bytes()[self.at..];
        match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 => self.fault("a digit"),
            count => {
                self.at += count;
                Ok(())
            }
        }
    }

    fn word(&mut self, word: &'static str) -> Parse<()> {
        if !self.text[self.at..].starts_with(word) {
            return self.fault("a value");
        }
        self.at += word.len();
        Ok(())
    }

    fn next_is(&self, byte: u8) -> bool {
        self.text.as_bytes().get(self.at) == Some(&byte)
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Parse<()> {
        if self.eat(byte) {
            return Ok(());
        }
        self.fault(expected)
    }

    fn fault<T>(&self, expected: &'static str) -> Parse<T> {
        Err(Fault {
            at: self.at,
            expected,
        })
    }
}

/// White space of JSON.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Names what a value is, by its first byte.
pub(super) fn kind(first: Option<u8>) -> &'static str {
    match first {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn skip(text: &str) -> Parse<()> {
        let mut cursor = Cursor::new(text);
        cursor.skip()?;
        cursor.end()
    }

    fn string(text: &str) -> Parse<(String, bool)> {
        let mut cursor = Cursor::new(text);
        let string = cursor.string()?.into_owned();
        cursor.end()?;
        Ok((string, cursor.lone_surrogate))
    }

    pub(in crate::ingest) fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_is_passed(value in json(), pretty: bool) {
            let text = if pretty {
                serde_json::to_string_pretty(&value).unwrap()
            } else {
                value.to_string()
            };
            prop_assert_eq!(skip(&text), Ok(()));
        }

        // One character changed or removed: the verdict is that of serde_json.
        #[test]
        fn damage_is_judged_as_serde_json_does(
            value in json(), at: prop::sample::Index, put in "[\\PC\\x00-\\x1f]?"
        ) {
            let mut characters: Vec<String> = value.to_string().chars().map(String::from).collect();
            let at = at.index(characters.len());
            characters[at] = put;
            let text = characters.concat();
            let expected = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(skip(&text).is_ok(), expected, "{}", text);
        }

        #[test]
        fn strings_are_read_as_serde_json_does(text: String) {
            let written = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(string(&written), Ok((text.clone(), false)));
            let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            prop_assert_eq!(string(&format!("\"{escaped}\"")), Ok((text, false)));
        }
    }

    proptest! {
        #[test]
        fn room_as_long_as_the_record_is_enough(texts in prop::collection::vec(any::<String>(), 0..6), escape: bool) {
            let written = |text: &String| match escape {
                true => format!("\"{}\"", text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>()),
                false => serde_json::to_string(text).unwrap(),
            };
            let record = format!("[{}]", texts.iter().map(written).collect::<Vec<_>>().join(","));
            let mut room = vec![0; record.len()];
            let mut cursor = Cursor::with_room(&record, &mut room);
            let mut found = Vec::new();
            cursor.array(|cursor| {
                found.push(cursor.string()?);
                Ok(())
            }).unwrap();
            prop_assert!(found.iter().all(|text| matches!(text, Cow::Borrowed(_))));
            prop_assert_eq!(found, texts);
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_noticed() {
        for text in [
            r#""\ud800""#,
            r#""\udc00x""#,
            r#""\ud800\u0041""#,
            r#""\ud800\ud800\udc00""#,
        ] {
            assert!(string(text).unwrap().1, "{text}");
        }
        assert_eq!(string(r#""\ud83d\ude00""#), Ok(("😀".into(), false)));
    }

    #[test]
    fn what_python_writes_for_floats_is_a_value() {
        for text in ["NaN", "Infinity", "-Infinity", "[NaN, -0, 1e999]"] {
            assert_eq!(skip(text), Ok(()), "{text}");
        }
        for text in ["+1", "01", "1.", ".5", "1e", "-", "nan", "--1", "-NaN"] {
            assert!(skip(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_and_long_values_are_passed_without_recursion() {
        let depth = 1_000_000;
        let text = "[".repeat(depth) + &"]".repeat(depth);
        let mut cursor = Cursor::new(&text);
        assert_eq!(cursor.skip(), Ok(()));
        assert!(cursor.too_deep);
        assert!(skip(&"[".repeat(depth)).is_err());
        assert_eq!(skip(&"7".repeat(depth)), Ok(()));
    }
}
